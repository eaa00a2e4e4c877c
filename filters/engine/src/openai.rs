//! OpenAI's chat completions: reads a request into a conversation, writes one for a provider, reads a provider's answer
//! and writes one for the client.

mod answer;
mod chunk;
mod judged;
mod repeats;
mod request;

pub use answer::{parse_answer, write_answer};
pub use chunk::{Chunk, DONE, Frame, error_event, parse_chunk, refusal_chunk, with_model_in, write_replay};
pub use judged::judged_only;
pub use repeats::Reader;
pub(crate) use request::json_string;
pub use request::{Edits, model_span, read, write_for_provider};
