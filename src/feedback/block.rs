//! A guard's block as feedback on the run: rare enough for feedback, unlike the verdicts on every run, which are metadata.

use parapet_engine::record::GuardRecord;
use serde_json::json;
use uuid::Uuid;

use super::queue::{Item, Verdict};
use super::{Feedback, lock};
use crate::accesslog::line::Line;
use crate::langsmith::deliver::{Delivery, Stopped, now_us};
use crate::langsmith::order::Order;
use crate::langsmith::tree;

/// Blocks that may wait: a flood of them must leave room for votes. What is above it is in the runs' tags and metadata.
const MAX_PENDING: usize = 5_000;

/// A guard stopped the text of this run.
#[derive(Debug, Clone)]
pub struct Block {
    root: Order,
    side: &'static str,
    item: Item,
}

impl Block {
    /// The line's blocks.
    pub fn of(line: &Line, root: &Order) -> Vec<Self> {
        let record = &line.record;
        let blocked = |(side, guard): (&'static str, Option<&GuardRecord>)| {
            let guard = guard.filter(|guard| tree::blocked(Some(guard)))?;
            let item = Item {
                id: Uuid::nil(),
                trace_id: line.id,
                tenant: record.tenant.clone(),
                user: record.user.clone(),
                key: format!("{side}_blocked"),
                score: Some(true.into()),
                value: Some(json!({ "categories": guard.categories, "score": guard.score })),
                comment: None,
                received_us: record.end_us,
                verdict: Some(Verdict {
                    guard_model: guard.model.clone(),
                    root: root.trace_id,
                    start_us: root.start_us,
                }),
                to: None,
            };
            Some(Self { root: root.clone(), side, item })
        };
        let guards = [("input", record.input_guard.as_ref()), ("output", record.output_guard.as_ref())];
        guards.into_iter().filter_map(blocked).collect()
    }
}

impl Feedback {
    /// Keeps the block until the destination, which has the run now, has it as well.
    pub async fn blocked(&self, delivery: &Delivery, block: Block) -> Result<(), Stopped> {
        let label = format!("feedback:{}:{}", block.side, delivery.destination);
        let mut item = block.item;
        // Made of the run and the destination alone: a repeated batch makes the same feedback.
        item.id = block.root.child(&label, item.received_us).id;
        item.to = Some(delivery.destination.clone());
        loop {
            let stored = {
                let mut queue = lock(&self.queue);
                let waiting = queue.pending().values().filter(|pending| pending.item.verdict.is_some()).count();
                if waiting >= MAX_PENDING { Ok(false) } else { queue.accept(item.clone()).map(|()| true) }
            };
            match stored {
                Ok(stored) => {
                    self.metrics.feedback(if stored { "block" } else { "block_left_out" });
                    self.arrived.send_replace(now_us());
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!("feedback cannot be stored: {error}; trying again");
                    delivery.pause(std::time::Duration::from_secs(1)).await?;
                }
            }
        }
    }
}
