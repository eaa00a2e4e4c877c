//! A child that cannot outlive its supervisor, however that one ends.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::fs::Mode;

/// Becomes `command`, to be killed by the kernel when the process `parent` ends.
///
/// The supervisor starts this instead of the command itself: the tie must be made in the child, survives `exec`, and
/// making it between `fork` and `exec` would need unsafe code. Returns only when the command cannot be run.
pub fn run(parent: i32, command: &[OsString]) -> anyhow::Result<std::convert::Infallible> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command to run") };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot tie the child to its supervisor")?;
    // Between the fork and the tie the supervisor may have ended already: then nobody would end this process.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now != Some(parent) {
        bail!("the supervisor ended");
    }
    // What is written (logs with prompts in them) is for this user alone.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
