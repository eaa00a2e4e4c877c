//! Which runs were seen, and whose they are: the memory behind "one trace per request" and behind "votes on your own
//! traces only". Bounded; rebuilt from the spool at start.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

/// Runs remembered. One takes about 100 bytes.
pub const CAPACITY: usize = 262_144;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub tenant: Arc<str>,
    /// The root of the trace the run is in: its own id unless it joined its caller's trace.
    pub trace_id: Uuid,
    /// The run's start as it was uploaded, microseconds since the Unix epoch.
    pub start_us: u64,
    /// False: this trace goes to nobody outside.
    pub sampled: bool,
}

#[derive(Debug)]
pub struct Index {
    known: HashMap<Uuid, Known>,
    order: VecDeque<Uuid>,
    tenants: HashSet<Arc<str>>,
    /// Names that no run holds any more are looked for when there are so many.
    sweep_at: usize,
    capacity: usize,
}

/// Tenants' names for which nobody looks through all of them.
const MANY: usize = 4096;

impl Index {
    pub fn new(capacity: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), tenants: HashSet::new(), sweep_at: MANY, capacity }
    }

    pub fn get(&self, id: Uuid) -> Option<&Known> {
        self.known.get(&id)
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Remembers a run; the oldest is forgotten when there are too many. False when it was known.
    pub fn insert(&mut self, id: Uuid, tenant: &str, trace_id: Uuid, start_us: u64, sampled: bool) -> bool {
        if self.known.contains_key(&id) {
            return false;
        }
        while self.order.len() >= self.capacity {
            let Some(oldest) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
        let tenant = self.intern(tenant);
        self.known.insert(id, Known { tenant, trace_id, start_us, sampled });
        self.order.push_back(id);
        true
    }

    /// One copy of each tenant's name; names that no run holds any more go when there are too many.
    fn intern(&mut self, tenant: &str) -> Arc<str> {
        if let Some(known) = self.tenants.get(tenant) {
            return Arc::clone(known);
        }
        if self.tenants.len() >= self.sweep_at {
            self.tenants.retain(|name| Arc::strong_count(name) > 1);
            // Only when as many new ones have come: with very many tenants each new one would look through all.
            self.sweep_at = (2 * self.tenants.len()).max(MANY);
        }
        let name: Arc<str> = tenant.into();
        self.tenants.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_names_are_few_when_runs_are_and_are_not_swept_for_each_run_when_they_are_many() {
        let fill = |capacity| {
            let mut index = Index::new(capacity);
            for number in 0..50_000_u128 {
                let id = Uuid::from_u128(number);
                index.insert(id, &format!("tenant-{number}"), id, 0, true);
            }
            (index.tenants.len(), index.sweep_at)
        };
        let (names, sweep_at) = fill(10);
        assert!(names <= MANY && sweep_at == MANY, "{names} {sweep_at}");
        let (names, sweep_at) = fill(100_000);
        assert!(names == 50_000 && sweep_at > 50_000, "{names} {sweep_at}");
    }

    #[test]
    fn the_oldest_is_forgotten_and_a_known_one_is_refused() {
        let ids: Vec<Uuid> = (0..4_u128).map(Uuid::from_u128).collect();
        let mut index = Index::new(3);
        for &id in &ids {
            assert!(index.insert(id, "acme", id, 0, true));
        }
        assert!(!index.insert(ids[3], "globex", ids[3], 0, true));
        assert_eq!(index.get(ids[0]), None);
        assert_eq!(&*index.get(ids[3]).unwrap().tenant, "acme");
        assert_eq!(index.len(), 3);
    }
}
