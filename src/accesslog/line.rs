//! One line of the access log: `{"v":1,"code":200,"flags":"-","details":"via_upstream","ms":12,"record":{...}}`.

use std::borrow::Cow;

use parapet_engine::record::{Record, VERSION};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The version of the line around the record.
const LINE_VERSION: u32 = 1;

#[derive(Debug)]
pub struct Line {
    /// The record's `id`, parsed.
    pub id: Uuid,
    pub record: Record,
    /// Envoy's response flags, `-` when there are none.
    pub flags: String,
    /// Envoy's response code details.
    pub details: String,
}

/// Why a line gives no record. None of these holds content, so that they can be logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    /// Envoy answered before the filter saw the request (a malformed head, for one).
    #[error("no filter saw the request")]
    Unrecorded,
    #[error("not a line of Parapet's access log (at byte {at})")]
    NotOurs { at: usize },
    #[error("version {line} with a record of version {record}; this program reads {LINE_VERSION} and {VERSION}")]
    UnknownVersion { line: u32, record: u32 },
    #[error("the record cannot be read (at byte {at} of it)")]
    BadRecord { at: usize },
    #[error("the record's id is not a UUID")]
    BadId,
    /// Found by the tail, before any parsing.
    #[error("longer than the tail's bound")]
    TooLong,
}

impl Skipped {
    /// A short name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unrecorded => "unrecorded",
            Self::NotOurs { .. } => "not_ours",
            Self::UnknownVersion { .. } => "unknown_version",
            Self::BadRecord { .. } => "bad_record",
            Self::BadId => "bad_id",
            Self::TooLong => "too_long",
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    v: u32,
    #[serde(default)]
    code: u16,
    #[serde(borrow, default)]
    flags: Cow<'a, str>,
    #[serde(borrow, default)]
    details: Cow<'a, str>,
    #[serde(borrow, default)]
    record: Option<&'a RawValue>,
}

/// The same with the record read in the same pass: what nearly every line is.
#[derive(Deserialize)]
struct Whole<'a> {
    v: u32,
    #[serde(default)]
    code: u16,
    #[serde(borrow, default)]
    flags: Cow<'a, str>,
    #[serde(borrow, default)]
    details: Cow<'a, str>,
    record: Record,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    v: u32,
}

/// Reads a line; beside it, where in `bytes` it begins. That is 0 unless an Envoy was killed in mid-line and the next
/// one wrote its first line behind the torn one: then the torn part is passed over and the whole one counts.
pub fn parse(bytes: &[u8]) -> Result<(Line, usize), Skipped> {
    let at = match parse_whole(bytes) {
        Err(Skipped::NotOurs { at }) => at,
        other => return other.map(|line| (line, 0)),
    };
    if let Some(start) = last_start(bytes) {
        let last = bytes.get(start..).unwrap_or_default();
        match parse_whole(last) {
            Ok(line) => return Ok((line, start)),
            Err(Skipped::Unrecorded) => return Err(Skipped::Unrecorded),
            Err(_) => {}
        }
        if let Some(line) = parse_bare(last) {
            return Ok((line, start));
        }
    }
    parse_bare(bytes).map(|line| (line, 0)).ok_or(Skipped::NotOurs { at })
}

fn parse_whole(bytes: &[u8]) -> Result<Line, Skipped> {
    let text = std::str::from_utf8(bytes).ok();
    if let Some(Ok(whole)) = text.map(serde_json::from_str::<Whole<'_>>)
        && whole.v == LINE_VERSION
        && whole.record.v == VERSION
    {
        return line(whole.record, whole.code, whole.flags, whole.details);
    }
    parse_parts(bytes)
}

/// The line, part by part: which one is wrong shows.
fn parse_parts(bytes: &[u8]) -> Result<Line, Skipped> {
    // Envoy writes `-` for a filter state that does not exist; with it the line is not JSON.
    if bytes.starts_with(b"{\"v\":") && bytes.ends_with(b"\"record\":-}") {
        return Err(Skipped::Unrecorded);
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|error| Skipped::NotOurs { at: error.column() })?;
    let Some(raw) = envelope.record else { return Err(Skipped::Unrecorded) };
    let parsed: Result<Record, serde_json::Error> = serde_json::from_str(raw.get());
    let record_version = match &parsed {
        Ok(record) => record.v,
        Err(_) => serde_json::from_str(raw.get()).map_or(0, |version: Version| version.v),
    };
    if envelope.v != LINE_VERSION || (record_version != VERSION && record_version != 0) {
        return Err(Skipped::UnknownVersion { line: envelope.v, record: record_version });
    }
    let record = parsed.map_err(|error| Skipped::BadRecord { at: error.column() })?;
    if record_version == 0 {
        return Err(Skipped::UnknownVersion { line: envelope.v, record: 0 });
    }
    line(record, envelope.code, envelope.flags, envelope.details)
}

fn line(mut record: Record, code: u16, flags: Cow<'_, str>, details: Cow<'_, str>) -> Result<Line, Skipped> {
    if record.status == 0 && code >= 400 {
        // An answer that Envoy made after the filter had its last word (a connection that broke while it was held).
        record.status = code;
    }
    let id = Uuid::try_parse(&record.id).map_err(|_| Skipped::BadId)?;
    Ok(Line { id, record, flags: flags.into_owned(), details: details.into_owned() })
}

/// The record of a line whose other parts are no JSON: Envoy writes its texts as they are, and a quote in the reason that a
/// connection failed for is no reason to lose the request. They are given up; nothing of a client's stands before the record.
fn parse_bare(bytes: &[u8]) -> Option<Line> {
    const RECORD: &[u8] = b",\"record\":";
    let start = memchr::memmem::find(bytes, RECORD).filter(|_| bytes.starts_with(START))?;
    let record = bytes.get(start + RECORD.len()..)?.strip_suffix(b"}")?;
    let record: Record = serde_json::from_slice(record).ok()?;
    (record.v == VERSION).then(|| line(record, 0, Cow::default(), Cow::default()).ok()).flatten()
}

/// What every line of this version begins with.
const START: &[u8] = b"{\"v\":1,\"code\":";

fn last_start(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::rfind(bytes, START).filter(|&at| at > 0)
}

impl Line {
    /// Whether the request becomes a run: a caller's chat in any wire form does. A list of models or a health check does
    /// not, nor does what was refused before it was any caller's.
    pub fn is_run(&self) -> bool {
        matches!(self.record.api.as_str(), "chat_completions" | "chat") && !self.record.tenant.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A line as Envoy writes it, without its end.
    pub(crate) fn line(record: &str) -> String {
        format!(r#"{{"v":1,"code":200,"flags":"-","details":"via_upstream","ms":12,"record":{record}}}"#)
    }

    const ID: &str = "01a20791-8327-7764-a3ea-7224f6c98036";

    #[test]
    fn each_kind_of_line_is_told_apart() {
        let good = format!(
            r#"{{"v":1,"id":"{ID}","api":"chat","tenant":"t","messages":[{{"role":"user","content":"é\""}}]}}"#
        );
        let (parsed, start) = parse(line(&good).as_bytes()).unwrap();
        assert_eq!((parsed.id.to_string().as_str(), start, parsed.is_run()), (ID, 0, true));
        assert_eq!((&*parsed.details, parsed.record.status), ("via_upstream", 0));
        let broken = line(&good).replace("200", "502");
        let status = parse(broken.as_bytes()).unwrap().0.record.status;
        assert_eq!(status, 502, "the code stands in for a status that the filter never saw");

        let nobodys = line(&good.replace(r#""tenant":"t","#, ""));
        assert!(!parse(nobodys.as_bytes()).unwrap().0.is_run(), "a refused key");
        let skipped = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(skipped(&line("-")), Skipped::Unrecorded);
        assert_eq!(skipped(&line("null")), Skipped::Unrecorded);
        assert!(matches!(skipped("hello"), Skipped::NotOurs { .. }));
        assert!(matches!(skipped(""), Skipped::NotOurs { .. }));
        assert!(matches!(skipped(r#"{"v":1,"code":200,"record":"#), Skipped::NotOurs { .. }));
        assert_eq!(skipped(&line("[1]")), Skipped::BadId);
        assert!(matches!(skipped(&line(r#"{"v":1,"id":7}"#)), Skipped::BadRecord { .. }));
        assert_eq!(skipped(&line(r#"{"v":1,"id":"x"}"#)), Skipped::BadId);
        let newer = r#"{"v":2,"id":{"of":"another shape"}}"#;
        assert_eq!(skipped(&line(newer)), Skipped::UnknownVersion { line: 1, record: 2 });
        let newer_line = line(&good).replace(r#"{"v":1,"code""#, r#"{"v":2,"code""#);
        assert_eq!(skipped(&newer_line), Skipped::UnknownVersion { line: 2, record: 1 });
    }

    #[test]
    fn a_line_behind_a_torn_one_is_read() {
        let whole = line(&format!(r#"{{"v":1,"id":"{ID}"}}"#));
        for cut in 1..whole.len() {
            let joined = format!("{}{whole}", &whole[..cut]);
            let (parsed, start) = parse(joined.as_bytes()).unwrap();
            assert_eq!((parsed.id.to_string().as_str(), start), (ID, cut));
        }
    }

    #[test]
    fn a_text_of_envoys_that_is_no_json_does_not_take_the_record_along() {
        let whole = line(&format!(r#"{{"v":1,"id":"{ID}","api":"chat","tenant":"t"}}"#));
        for text in [&b"TLS: \"CN=x\", \\ and {"[..], b"\xff\xfe"] {
            let (before, behind) = whole.split_once("via_upstream").unwrap();
            let broken = [before.as_bytes(), text, behind.as_bytes()].concat();
            let (parsed, start) = parse(&broken).unwrap();
            assert_eq!((parsed.id.to_string().as_str(), start, parsed.is_run()), (ID, 0, true));
            assert_eq!(parse(&broken[..broken.len() - 2]).unwrap_err().label(), "not_ours", "torn");
            let joined = [&broken[..broken.len() - 2], whole.as_bytes()].concat();
            assert_eq!(parse(&joined).unwrap().1, broken.len() - 2);
        }
    }

    #[test]
    fn what_a_client_wrote_is_not_taken_for_a_line() {
        let forged = line(r#"{"v":1,"id":"01a20791-0000-7000-8000-000000000000"}"#);
        let whole = line(&format!(r#"{{"v":1,"id":"{ID}","messages":[{forged}]}}"#));
        assert_eq!(parse(whole.as_bytes()).unwrap().0.id.to_string(), ID);
        let torn = &whole[..whole.len() - 1];
        assert!(parse(torn.as_bytes()).is_err());
    }
}
