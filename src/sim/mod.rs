//! Stand-ins for the servers around the gateway: vLLM, Llama Guard on vLLM, OpenAI and LangSmith.
//!
//! They answer deterministically, speak each server's own protocol down to the order of its events, remember what they were
//! asked, and misbehave on command ([`Faults`]). They listen on 127.0.0.1 only and keep everything in bounded memory.
//!
//! In a test: `let vllm = sim::vllm::start(Default::default()).await?`, then [`Simulator::url`], [`Simulator::set_faults`]
//! and [`Simulator::requests`]. Dropping the [`Simulator`] stops it.
//! Over HTTP each serves `GET`/`POST /sim/faults` and `GET`/`DELETE /sim/requests`.

mod answers;
mod chat;
mod completion;
mod faults;
mod key;

pub mod langsmith;
pub mod llama_guard;
pub mod openai;
mod requests;
mod server;
mod shape;
mod sse;
#[cfg(test)]
mod testing;
pub mod vllm;

pub use chat::Options as ChatOptions;
pub use faults::{FaultError, Faults};
pub use key::{ApiKey, KeyOptions};
pub use requests::SeenRequest;
pub use server::Simulator;

use anyhow::Context;

/// Which server to stand in for.
#[derive(clap::Subcommand)]
pub enum Command {
    /// vLLM's OpenAI-compatible server (0.32)
    Vllm(vllm::Options),

    /// Llama Guard 3 served by vLLM
    LlamaGuard(llama_guard::Options),
    /// OpenAI's chat completions
    Openai(openai::Options),
    /// LangSmith's run and feedback ingestion
    Langsmith(langsmith::Options),
}

/// Runs one simulator until SIGTERM or Ctrl-C.
///
/// # Errors
/// When the port is taken or the variable named by `--api-key-env` is not set.
pub async fn run(command: Command) -> anyhow::Result<()> {
    let (name, simulator) = match command {
        Command::Vllm(options) => ("vllm", vllm::start(options).await),

        Command::LlamaGuard(options) => ("llama-guard", llama_guard::start(options).await),
        Command::Openai(options) => ("openai", openai::start(options).await),
        Command::Langsmith(options) => {
            ("langsmith", langsmith::start(options).await.map(langsmith::LangSmith::into_server))
        }
    };
    let simulator = simulator.with_context(|| format!("starting the {name} simulator"))?;
    eprintln!("{name} simulator serves {}", simulator.url());
    stop_signal().await?;
    simulator.stop().await;
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot listen for Ctrl-C"),
    }
}
