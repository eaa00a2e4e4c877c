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
    capacity: usize,
}

impl Index {
    pub fn new(capacity: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), tenants: HashSet::new(), capacity }
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
        const MANY: usize = 4096;
        if let Some(known) = self.tenants.get(tenant) {
            return Arc::clone(known);
        }
        if self.tenants.len() >= MANY {
            self.tenants.retain(|name| Arc::strong_count(name) > 1);
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
