
pub mod line;
pub mod position;
pub mod tail;
