//! The exact cache: what an entry holds, how its key is made, and when an answer may be stored.

use serde::{Deserialize, Serialize};

use crate::record::{Answered, Usage};

/// A stored answer in the common form: it can be replayed as JSON or SSE, by any wire form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Seconds since the Unix epoch at which the answer was made.
    pub created_s: u64,
    /// Seconds since the Unix epoch from which the entry must not be served.
    pub expires_s: u64,
    /// The provider that made it.
    pub provider: String,
    pub answers: Vec<Answered>,
    pub usage: Usage,
}
