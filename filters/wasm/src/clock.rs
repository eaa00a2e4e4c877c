//! What streams want done outside of a callback of their own: Envoy gives a filter no other clock than its root's tick.

use core::cell::RefCell;
use core::time::Duration;

use crate::host;

/// The tick's period while anything is due. Envoy's timers count in milliseconds.
const PERIOD: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Lets go of what is in the response's buffer.
    Resume,
    /// Ends the stream in both directions at once.
    Reset,
}

#[derive(Debug)]
struct Due {
    stream: u32,
    at_us: u64,
    act: Act,
}

/// One worker's. A stream has at most one entry of each kind, and none once it has ended.
#[derive(Debug)]
pub(crate) struct Clock {
    root: u32,
    due: RefCell<Vec<Due>>,
}

impl Clock {
    pub(crate) const fn new(root: u32) -> Self {
        Self { root, due: RefCell::new(Vec::new()) }
    }

    /// Called by the stream itself.
    pub(crate) fn set(&self, stream: u32, at_us: u64, act: Act) {
        let mut due = self.due.borrow_mut();
        if due.is_empty() && host::act_as(self.root) {
            host::tick_every(PERIOD);
            host::act_as(stream);
        }
        if !due.iter().any(|known| known.stream == stream && known.act == act) {
            due.push(Due { stream, at_us, act });
        }
    }

    pub(crate) fn is_set(&self, stream: u32, act: Act) -> bool {
        self.due.borrow().iter().any(|known| known.stream == stream && known.act == act)
    }

    pub(crate) fn cancel(&self, stream: u32, act: Act) {
        self.due.borrow_mut().retain(|known| known.stream != stream || known.act != act);
    }

    pub(crate) fn forget(&self, stream: u32) {
        self.due.borrow_mut().retain(|known| known.stream != stream);
    }

    /// Does what is due; whether more is to come.
    pub(crate) fn tick(&self, now_us: u64) -> bool {
        let mut now = Vec::new();
        self.due.borrow_mut().retain(|known| {
            let later = known.at_us > now_us;
            if !later {
                now.push((known.stream, known.act));
            }
            later
        });
        for (stream, act) in now {
            // A context that is gone has nothing left to do.
            if host::act_as(stream) {
                match act {
                    Act::Resume => host::resume_response(),
                    Act::Reset => host::reset_response(),
                }
            }
        }
        host::act_as(self.root);
        !self.due.borrow().is_empty()
    }
}
