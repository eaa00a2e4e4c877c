//! From Envoy's access log to everything that is made of it: the tail, the lines, and the pipeline of their effects.

pub mod line;
pub mod pipeline;
pub mod position;
pub mod rotate;
pub mod tail;
