//! `parapet spool`: what waits for LangSmith and the OTLP collector, and what is to become of what they refused.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::status;
use crate::feedback::queue;
use crate::langsmith::dead_letter::{DeadLetters, Letter, Selection};
use crate::langsmith::deliver::now_us;

/// Dead letters shown, the newest.
const SHOWN: usize = 20;
/// Of the server's answer.
const RESPONSE: usize = 160;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show what waits for upload, and the dead letters
    Status {
        #[command(flatten)]
        data: Data,
        /// Show every dead letter, not the newest 20
        #[arg(long)]
        all: bool,
    },
    /// Send dead letters again: all of them, or these
    Retry {
        #[command(flatten)]
        data: Data,
        /// Ids as `status` shows them
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
    /// Forget dead letters for good: these, or all of them with --yes
    Drop {
        #[command(flatten)]
        data: Data,
        /// Ids as `status` shows them
        #[arg(value_name = "ID", required_unless_present = "yes")]
        ids: Vec<String>,
        /// Forget all of them
        #[arg(long, conflicts_with = "ids")]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Data {
    /// Directory of everything that is remembered
    #[arg(long, env = "PARAPET_DATA_DIR", default_value = ".parapet")]
    data_dir: PathBuf,
}

impl Data {
    fn spool(&self) -> anyhow::Result<PathBuf> {
        let dir = self.data_dir.join("spool");
        if !dir.is_dir() {
            bail!("there is no spool in {}: set PARAPET_DATA_DIR to the sidecar's", self.data_dir.display());
        }
        Ok(dir)
    }
}

/// Runs the command; what it has to say.
///
/// # Errors
/// When there is no spool, it cannot be read or written, or an id is no dead letter's.
pub fn run(command: &Command) -> anyhow::Result<String> {
    match command {
        Command::Status { data, all } => show(&data.spool()?, *all),
        Command::Retry { data, ids } => {
            let count = act(&data.spool()?, ids, DeadLetters::retry)?;
            Ok(format!("{count} dead letters go to the running sidecar, or to the next one\n"))
        }
        Command::Drop { data, ids, yes: _ } => {
            let count = act(&data.spool()?, ids, DeadLetters::forget)?;
            Ok(format!("{count} dead letters dropped\n"))
        }
    }
}

fn act(
    dir: &std::path::Path,
    ids: &[String],
    act: fn(&DeadLetters, &Selection) -> std::io::Result<u64>,
) -> anyhow::Result<u64> {
    let files = files(dir);
    let mut selection = Selection::All;
    if !ids.is_empty() {
        let wanted: BTreeSet<String> = ids.iter().cloned().collect();
        let mut known = BTreeSet::new();
        for letters in &files {
            letters.for_each(|letter| known.extend([letter.id.clone()])).context("the dead letters cannot be read")?;
        }
        if let Some(unknown) = wanted.difference(&known).next() {
            bail!("{unknown} is no dead letter's id; `parapet spool status --all` shows them. Nothing was changed");
        }
        selection = Selection::Ids(wanted);
    }
    let mut count = 0;
    for letters in &files {
        count += act(letters, &selection).with_context(|| format!("{} cannot be changed", letters.file()))?;
    }
    Ok(count)
}

fn files(dir: &std::path::Path) -> [DeadLetters; 2] {
    [DeadLetters::new(dir), DeadLetters::otlp(dir)]
}

fn show(dir: &std::path::Path, all: bool) -> anyhow::Result<String> {
    let status = status::inspect(dir).with_context(|| format!("the spool in {} cannot be read", dir.display()))?;
    let files = files(dir);
    // By their time: ISO 8601 sorts.
    let mut letters: Vec<(String, String)> = Vec::new();
    let mut counts: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    let mut unreadable = 0;
    for dead in &files {
        unreadable += dead
            .for_each(|letter| {
                *counts.entry(letter.destination.clone()).or_default() += 1;
                letters.push((letter.time.clone(), describe(letter)));
                if !all && letters.len() > SHOWN * 2 {
                    letters.sort();
                    letters.drain(..SHOWN);
                }
            })
            .with_context(|| format!("{} cannot be read", dead.file()))?;
    }
    letters.sort();
    if !all {
        letters.drain(..letters.len().saturating_sub(SHOWN));
    }
    let again = files[0].waiting().context("the dead letters that go back cannot be read")?;
    let names: Vec<String> = status.destinations.iter().map(|destination| destination.name.clone()).collect();
    let feedback = queue::count(&dir.join("feedback.jsonl"), &names).context("the feedback queue cannot be read")?;

    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "kept: {} requests in {} segments, {} KiB", status.lines, status.segments, status.bytes / 1024);
    if status.destinations.is_empty() {
        text.push_str("upload: none configured when the sidecar last started\n");
    }
    for destination in &status.destinations {
        let name = &destination.name;
        let oldest = destination.oldest_us.map(|at| now_us().saturating_sub(at) / 1_000_000);
        let oldest = oldest.map(|seconds| format!(", the oldest for {seconds} s")).unwrap_or_default();
        let dead = counts.remove(name).unwrap_or_default();
        let again = again.get(name).copied().unwrap_or_default();
        let waiting = destination.waiting;
        let _ =
            writeln!(text, "{name}: {waiting} requests wait{oldest}; {dead} dead letters; {again} being sent again");
    }
    for (name, dead) in counts {
        let _ = writeln!(text, "{name}: not configured any more; {dead} dead letters");
    }
    let again = again.get("feedback").copied().unwrap_or_default();
    let _ = writeln!(text, "feedback: {feedback} wait; {again} being sent again");
    if unreadable > 0 {
        let _ = writeln!(text, "{unreadable} dead letters cannot be read");
    }
    if !letters.is_empty() {
        text.push_str("\ndead letters, the newest last:\n");
        letters.iter().for_each(|(_, letter)| text.push_str(letter));
    }
    Ok(text)
}

fn describe(letter: &Letter) -> String {
    let kind = match letter {
        Letter { feedback: Some(_), .. } => "feedback",
        Letter { line: Some(_), .. } => "spans",
        _ => "run",
    };
    // What a server sent must not move the terminal's cursor.
    let response: String = letter.response.chars().take(RESPONSE).flat_map(char::escape_debug).collect();
    let Letter { id, time, destination, status, .. } = letter;
    format!("  {id}  {time}  {kind}  {destination}  status {status}: {response}\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;
    use crate::accesslog::line::tests::line;
    use crate::spool::{Options, Spool};

    const ID: &str = "01a20791-8327-7764-a3ea-7224f6c98036";

    fn letter(id: &str) -> Letter {
        Letter {
            id: id.to_owned(),
            time: "2026-11-23T08:41:46.535477+00:00".to_owned(),
            destination: "a".to_owned(),
            status: 422,
            response: "bad\u{1b}[2J field".to_owned(),
            run: RawValue::from_string("{}".to_owned()).ok(),
            feedback: None,
            line: None,
        }
    }

    fn said(data_dir: &Path, command: impl FnOnce(Data) -> Command) -> anyhow::Result<String> {
        run(&command(Data { data_dir: data_dir.to_owned() }))
    }

    #[test]
    fn status_shows_what_waits_and_what_was_refused_and_the_others_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let status = |data| Command::Status { data, all: false };
        assert!(said(dir.path(), status).unwrap_err().to_string().contains("there is no spool"));
        let spool = Spool::open(Options {
            dir: dir.path().join("spool"),
            segment_bytes: 1,
            max_bytes: 1 << 20,
            retention: std::time::Duration::from_secs(3600),
            destinations: vec!["a".to_owned(), "b".to_owned()],
        })
        .unwrap();
        for ago in [90, 60, 30] {
            let record = json!({"v": 1, "id": ID, "end_us": now_us() - ago * 1_000_000});
            spool.append(&[line(&record.to_string()).as_bytes()]).unwrap();
            spool.publish();
        }
        spool.advance("b", spool.end(), 3).unwrap();
        let first = spool.read(spool.cursor("a"), 1, 1).unwrap();
        spool.advance("a", first.next, 1).unwrap();
        let letters = DeadLetters::new(&dir.path().join("spool"));
        let ids: Vec<String> = (0..25).map(|n| format!("{n:02}{}", &ID[2..])).collect();
        ids.iter().for_each(|id| letters.park(&letter(id)).unwrap());

        let text = said(dir.path(), status).unwrap();
        assert!(
            text.contains("a: 2 requests wait, the oldest for 6") && text.contains("; 25 dead letters; 0 being"),
            "{text}"
        );
        assert!(text.contains("b: 0 requests wait; 0 dead letters"), "{text}");
        assert!(text.contains("status 422: bad\\u{1b}[2J field\n") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(text.matches("status 422").count(), 20);

        let retry = |ids: &[&str]| {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            said(dir.path(), |data| Command::Retry { data, ids })
        };
        assert!(retry(&[&ids[0], "nonsense"]).unwrap_err().to_string().contains("nonsense is no dead letter's id"));
        assert!(retry(&[&ids[0], &ids[1]]).unwrap().starts_with("2 dead letters go"));
        let dropped = said(dir.path(), |data| Command::Drop { data, ids: vec![ids[2].clone()], yes: false }).unwrap();
        assert_eq!(dropped, "1 dead letters dropped\n");
        let text = said(dir.path(), |data| Command::Status { data, all: true }).unwrap();
        assert!(text.contains("; 22 dead letters; 2 being sent again"), "{text}");
        assert_eq!(text.matches("status 422").count(), 22);
        let spans = Letter {
            destination: crate::otel::DESTINATION.to_owned(),
            line: RawValue::from_string("{}".to_owned()).ok(),
            run: None,
            time: "2026-11-23T08:41:45.000000+00:00".to_owned(),
            ..letter(&format!("99{}", &ID[2..]))
        };
        let collector = DeadLetters::otlp(&dir.path().join("spool"));
        collector.park(&spans).unwrap();
        collector.park(&Letter { id: format!("98{}", &ID[2..]), ..spans.clone() }).unwrap();
        let text = said(dir.path(), |data| Command::Status { data, all: true }).unwrap();
        assert!(text.contains("@otlp: not configured any more; 2 dead letters"), "{text}");
        assert!(text.contains("newest last:\n  98") && text.contains("  spans  @otlp"), "{text}");
        assert!(retry(&[&spans.id]).unwrap().starts_with("1 dead letters go"));
        assert_eq!(collector.retries("@otlp", 9).unwrap().letters[0].id, spans.id);
        let dropped = said(dir.path(), |data| Command::Drop { data, ids: Vec::new(), yes: true }).unwrap();
        assert_eq!(dropped, "23 dead letters dropped\n");
        assert!(!said(dir.path(), status).unwrap().contains("status 422"));
    }
}
