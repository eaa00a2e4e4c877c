//! The key-value map that the VMs of a process share.

use std::collections::BTreeMap;

use proxy_wasm::types::Status;

/// As measured: compare-and-swap works; nothing is ever deleted (removing leaves an empty value with a cas of its
/// own); the cas counter is one for the whole map.
#[derive(Default)]
pub(crate) struct SharedData {
    entries: BTreeMap<String, (Vec<u8>, u32)>,
    cas: u32,
    /// Writes of "other workers" that land just before the filter's next write to the key.
    contenders: BTreeMap<String, Vec<u8>>,
}

impl SharedData {
    pub(crate) fn get(&self, key: &str) -> Result<(Vec<u8>, u32), Status> {
        self.entries.get(key).cloned().ok_or(Status::NotFound)
    }

    /// `cas` zero writes in any case, as does a first write to a key.
    pub(crate) fn set(&mut self, key: &str, value: &[u8], cas: u32) -> Result<(), Status> {
        if let Some(contender) = self.contenders.remove(key) {
            self.write(key, &contender);
        }
        match self.entries.get(key) {
            Some((_, current)) if cas != 0 && cas != *current => Err(Status::CasMismatch),
            _ => {
                self.write(key, value);
                Ok(())
            }
        }
    }

    fn write(&mut self, key: &str, value: &[u8]) {
        self.cas += 1;
        self.entries.insert(key.to_owned(), (value.to_vec(), self.cas));
    }

    pub(crate) fn contend(&mut self, key: &str, value: &[u8]) {
        self.contenders.insert(key.to_owned(), value.to_vec());
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }
}
