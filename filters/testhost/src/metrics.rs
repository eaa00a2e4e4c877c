//! Counters, gauges and histograms by name.

use std::collections::BTreeMap;

use proxy_wasm::types::{MetricType, Status};

#[derive(Default)]
pub(crate) struct Metrics {
    /// By id: the metric's type and name. Each definition gets an id of its own, also of a known name.
    defined: Vec<(MetricType, String)>,
    values: BTreeMap<String, u64>,
    samples: BTreeMap<String, Vec<u64>>,
}

impl Metrics {
    pub(crate) fn define(&mut self, kind: MetricType, name: String) -> u32 {
        self.defined.push((kind, name));
        u32::try_from(self.defined.len()).expect("fewer than u32::MAX metrics")
    }

    fn defined(&self, id: u32) -> Result<(MetricType, String), Status> {
        let index = (id as usize).checked_sub(1).ok_or(Status::NotFound)?;
        self.defined.get(index).cloned().ok_or(Status::NotFound)
    }

    /// # Errors
    /// `BadArgument` for a counter moved by zero or backwards, and for a histogram, as measured.
    pub(crate) fn increment(&mut self, id: u32, offset: i64) -> Result<(), Status> {
        let (kind, name) = self.defined(id)?;
        match kind {
            MetricType::Counter if offset <= 0 => return Err(Status::BadArgument),
            MetricType::Histogram => return Err(Status::BadArgument),
            _ => {}
        }
        let value = self.values.entry(name).or_default();
        *value = value.saturating_add_signed(offset);
        Ok(())
    }

    pub(crate) fn record(&mut self, id: u32, value: u64) -> Result<(), Status> {
        let (kind, name) = self.defined(id)?;
        match kind {
            MetricType::Counter => *self.values.entry(name).or_default() += value,
            MetricType::Gauge => drop(self.values.insert(name, value)),
            _ => self.samples.entry(name).or_default().push(value),
        }
        Ok(())
    }

    pub(crate) fn get(&self, id: u32) -> Result<u64, Status> {
        match self.defined(id)? {
            (MetricType::Histogram, _) => Err(Status::BadArgument),
            (_, name) => Ok(self.value(&name)),
        }
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn samples(&self, name: &str) -> Vec<u64> {
        self.samples.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.defined.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}
