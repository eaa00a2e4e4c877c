//! Times, run ids and `dotted_order`, LangSmith's sort key of a run within its trace.
//!
//! A segment is the start time as `%Y%m%dT%H%M%S%fZ` (six digits of microseconds) and the run's id; a child's order is
//! its parent's, a dot and its own segment; no child starts before its parent.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const TIME_LEN: usize = 22;
const SEGMENT_LEN: usize = TIME_LEN + 36;
/// Depth of a caller's trace that is believed.
const MAX_DEPTH: usize = 64;
/// A caller's clock may be ahead by so much; its children are then clamped to its time.
const MAX_SKEW_US: u64 = 5 * 60 * 1_000_000;

/// Where a run stands in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub id: Uuid,
    pub trace_id: Uuid,
    pub parent: Option<Uuid>,
    pub dotted: String,
    /// Microseconds since the Unix epoch, not before the parent's.
    pub start_us: u64,
}

impl Order {
    /// The root of its own trace, or the child of the caller's run whose dotted order `joined` is. What cannot be one
    /// is ignored: it came from outside.
    pub fn root(id: Uuid, start_us: u64, joined: Option<&str>) -> Self {
        if let Some(caller) = joined.and_then(|text| Caller::parse(text, id, start_us)) {
            let start_us = start_us.max(caller.start_us);
            return Self {
                id,
                trace_id: caller.trace_id,
                parent: Some(caller.id),
                dotted: format!("{}.{}", caller.dotted, segment(id, start_us)),
                start_us,
            };
        }
        Self { id, trace_id: id, parent: None, dotted: segment(id, start_us), start_us }
    }

    /// Of [`Order::root`] the trace and the start alone, without writing anything down.
    pub fn place(id: Uuid, start_us: u64, joined: Option<&str>) -> (Uuid, u64) {
        match joined.and_then(|text| Caller::parse(text, id, start_us)) {
            Some(caller) => (caller.trace_id, start_us.max(caller.start_us)),
            None => (id, start_us),
        }
    }

    /// A child that started at `start_us`. Its id is made of the parent's and the label alone, so that a replay of the
    /// record makes the same run.
    pub fn child(&self, label: &str, start_us: u64) -> Self {
        let start_us = start_us.max(self.start_us);
        let id = child_id(self.id, label, start_us);
        Self {
            id,
            trace_id: self.trace_id,
            parent: Some(self.id),
            dotted: format!("{}.{}", self.dotted, segment(id, start_us)),
            start_us,
        }
    }
}

struct Caller<'a> {
    dotted: &'a str,
    trace_id: Uuid,
    id: Uuid,
    start_us: u64,
}

impl<'a> Caller<'a> {
    fn parse(dotted: &'a str, own: Uuid, own_start_us: u64) -> Option<Self> {
        let dotted = dotted.trim();
        if !dotted.is_ascii() || dotted.len() > MAX_DEPTH * (SEGMENT_LEN + 1) {
            return None;
        }
        let mut ids: Vec<Uuid> = Vec::new();
        let mut latest = 0;
        for part in dotted.split('.') {
            if part.len() != SEGMENT_LEN {
                return None;
            }
            let (time, id) = part.split_at(TIME_LEN);
            let start_us = parse_compact(time)?;
            let parsed = Uuid::try_parse(id).ok()?;
            // Written as LangSmith writes it: hyphenated and in lower case.
            let same_text = parsed.hyphenated().to_string() == id;
            if !same_text || start_us < latest || parsed == own || ids.contains(&parsed) {
                return None;
            }
            latest = start_us;
            ids.push(parsed);
        }
        let (&trace_id, &id) = (ids.first()?, ids.last()?);
        (latest <= own_start_us.saturating_add(MAX_SKEW_US)).then_some(Self { dotted, trace_id, id, start_us: latest })
    }
}

fn segment(id: Uuid, start_us: u64) -> String {
    format!("{}{}", compact(start_us), id.hyphenated())
}

/// A UUIDv7 with the time of `start_us` and a tail made of the root's id and the label.
fn child_id(root: Uuid, label: &str, start_us: u64) -> Uuid {
    let digest = Sha256::new().chain_update(root.as_bytes()).chain_update(label.as_bytes()).finalize();
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().skip(6).zip(digest.iter()) {
        *to = *from;
    }
    let milliseconds = (start_us / 1000).to_be_bytes();
    for (to, from) in bytes.iter_mut().zip(milliseconds.iter().skip(2)) {
        *to = *from;
    }
    uuid::Builder::from_bytes(bytes)
        .with_version(uuid::Version::SortRand)
        .with_variant(uuid::Variant::RFC4122)
        .into_uuid()
}

/// `2026-11-23T08:41:46.535477+00:00`, as LangSmith's SDK writes times.
pub fn iso(us: u64) -> String {
    let (year, month, day) = civil(us / DAY_US);
    let (hour, minute, second, fraction) = clock(us);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}+00:00")
}

/// `20261123T084146535477Z`.
fn compact(us: u64) -> String {
    let (year, month, day) = civil(us / DAY_US);
    let (hour, minute, second, fraction) = clock(us);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}{fraction:06}Z")
}

const DAY_US: u64 = 86_400_000_000;

const fn clock(us: u64) -> (u64, u64, u64, u64) {
    let seconds = us / 1_000_000;
    (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, us % 1_000_000)
}

/// Days since the Unix epoch to a Gregorian date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
const fn civil(days: u64) -> (u64, u64, u64) {
    // Four-digit years only: a clock beyond them is broken, and what it wrote must still sort.
    let days = if days > 2_932_896 { 2_932_896 } else { days } + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + (month <= 2) as u64, month, day)
}

/// The inverse of [`compact`]; none for what is not exactly such a time.
pub(super) fn parse_compact(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let of_era = shifted_year % 400 * 365 + shifted_year % 400 / 4 - shifted_year % 400 / 100 + of_year;
    let days = (shifted_year / 400 * 146_097 + of_era).checked_sub(719_468)?;
    let seconds = (days * 24 + number(9..11)?) * 3600 + number(11..13)? * 60 + number(13..15)?;
    let us = seconds * 1_000_000 + number(15..21)?;
    // 31 February, 25 o'clock, a missing `T` or `Z`: written again it is another text.
    (compact(us) == text).then_some(us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "01a20791-8327-7764-a3ea-7224f6c98036";
    /// 2026-11-23T08:41:46.535477 UTC.
    const START: u64 = 1_795_423_306_535_477;

    #[test]
    fn times_are_written_as_langsmith_reads_them() {
        for (us, compact_text, iso_text) in [
            (START, "20261123T084146535477Z", "2026-11-23T08:41:46.535477+00:00"),
            (0, "19700101T000000000000Z", "1970-01-01T00:00:00.000000+00:00"),
            (951_782_400_000_001, "20000229T000000000001Z", "2000-02-29T00:00:00.000001+00:00"),
            (4_107_542_399_999_999, "21000228T235959999999Z", "2100-02-28T23:59:59.999999+00:00"),
        ] {
            assert_eq!(compact(us), compact_text);
            assert_eq!(iso(us), iso_text);
            assert_eq!(parse_compact(compact_text), Some(us));
        }
        assert_eq!(compact(u64::MAX).len(), TIME_LEN);
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in 0..146_097 {
            let us = day * DAY_US + 1;
            assert_eq!(parse_compact(&compact(us)), Some(us));
        }
    }

    #[test]
    fn orders_of_a_root_and_its_children_are_exact() {
        let root = Order::root(ROOT.parse().unwrap(), START, None);
        assert_eq!(root.dotted, format!("20261123T084146535477Z{ROOT}"));
        assert_eq!((root.trace_id, root.parent), (root.id, None));

        let child = root.child("attempt:0", START + 1500);
        assert_eq!(child.dotted, format!("{}.20261123T084146536977Z{}", root.dotted, child.id));
        assert_eq!(child.id.to_string(), "01a20791-8328-7d19-b12d-9231f2d98e9c");
        assert_eq!((child.trace_id, child.parent), (root.id, Some(root.id)));
        assert_eq!(child, root.child("attempt:0", START + 1500));
        assert_ne!(child.id, root.child("attempt:1", START + 1500).id);
        assert_eq!(child.id.get_version_num(), 7);

        let early = root.child("cache", START - 1);
        assert_eq!(early.start_us, START);
    }

    #[test]
    fn a_callers_run_becomes_the_parent() {
        let top = "0198f0c1-0000-7000-8000-000000000001";
        let below = "0198f0c1-0000-7000-8000-000000000002";
        let caller = format!("20261123T084146000000Z{top}.20261123T084146500000Z{below}");
        let ours = Order::root(ROOT.parse().unwrap(), START, Some(&caller));
        assert_eq!(ours.dotted, format!("{caller}.20261123T084146535477Z{ROOT}"));
        assert_eq!((ours.trace_id.to_string().as_str(), ours.parent.unwrap().to_string().as_str()), (top, below));

        let ahead = format!("20261123T084200000000Z{top}");
        let ours = Order::root(ROOT.parse().unwrap(), START, Some(&ahead));
        assert_eq!(ours.dotted, format!("{ahead}.20261123T084200000000Z{ROOT}"));
    }

    #[test]
    fn what_is_no_dotted_order_is_ignored() {
        let id = "0198f0c1-0000-7000-8000-000000000001";
        let other = "0198f0c1-0000-7000-8000-000000000002";
        let time = "20261123T084146000000Z";
        let too_deep = vec![format!("{time}{id}"); MAX_DEPTH + 2].join(".");
        for caller in [
            String::new(),
            "x".to_owned(),
            id.to_owned(),
            format!("{time}{id}."),
            format!("20261123T0841460000Z00{id}"),
            format!("20261323T084146000000Z{id}"),
            format!("20260231T084146000000Z{id}"),
            format!("20261123 084146000000Z{id}"),
            format!("{time}{}", id.to_uppercase()),
            format!("{time}{ROOT}"),
            format!("{time}{id}.{time}{id}"),
            format!("{time}{id}.20261123T084145000000Z{other}"),
            format!("20991123T084146000000Z{id}"),
            format!("{time}{}é", &id[..34]),
            too_deep,
        ] {
            let ours = Order::root(ROOT.parse().unwrap(), START, Some(&caller));
            assert_eq!(ours.parent, None, "{caller}");
        }
    }
}
