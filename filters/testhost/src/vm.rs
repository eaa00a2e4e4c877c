//! A started filter: its root contexts, from which streams begin.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use crate::guest;
use crate::host::OneThread;
use crate::state::{next_id, with};
use crate::stream::Stream;

pub(crate) fn start() -> Result<Vm, Refused> {
    guest::initialize();
    let configurations = with(|state| state.configurations.clone());
    assert!(!configurations.is_empty(), "no root is configured");
    let mut roots = Vec::new();
    for (root_id, configuration) in configurations {
        let root = next_id();
        let (vm_size, plugin_size) = (with(|state| state.vm_configuration.len()), configuration.len());
        with(|state| {
            state.roots.insert(root, root_id.clone());
            state.configuring = Some(configuration);
        });
        guest::context_create(root, 0);
        let started = guest::vm_start(root, vm_size);
        let accepted = started && guest::configure(root, plugin_size);
        with(|state| state.configuring = None);
        roots.push((root_id.clone(), root));
        if !accepted {
            for (_, root) in roots {
                guest::delete(root);
                with(|state| state.roots.remove(&root));
            }
            return Err(Refused { root_id, by: if started { "on_configure" } else { "on_vm_start" } });
        }
    }
    Ok(Vm { roots, one_thread: PhantomData })
}

/// A filter that refused to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub root_id: String,
    /// The callback that returned false.
    pub by: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the root {} refused in {}", self.root_id, self.by)
    }
}

impl std::error::Error for Refused {}

/// A started VM: its root contexts.
#[derive(Debug)]
pub struct Vm {
    roots: Vec<(String, u32)>,
    one_thread: OneThread,
}

impl Vm {
    pub(crate) fn root(&self, root_id: &str) -> u32 {
        let root = self.roots.iter().find(|(id, _)| id == root_id);
        root.unwrap_or_else(|| panic!("the root {root_id} has no configuration")).1
    }

    /// A downstream stream through the filter of `root_id`.
    #[must_use]
    pub fn stream(&self, root_id: &str) -> Stream {
        Stream::downstream(self.root(root_id))
    }

    /// A stream through the upstream filter of `root_id` whose downstream side has no filter in this test.
    #[must_use]
    pub fn upstream(&self, root_id: &str) -> Stream {
        Stream::downstream(0).attempt(self, root_id)
    }

    /// Fires the timer of `root_id`, if the filter set one.
    pub fn tick(&self, root_id: &str) {
        if self.tick_period(root_id).is_some() {
            guest::tick(self.root(root_id));
        }
    }

    /// The period that the filter set; zero stops the timer.
    #[must_use]
    pub fn tick_period(&self, root_id: &str) -> Option<Duration> {
        let root = self.root(root_id);
        with(|state| state.tick_periods.get(&root).copied()).filter(|period| !period.is_zero())
    }
}
