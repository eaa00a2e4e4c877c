//! Numbers and times as people read them.

use crate::metrics::slo::Measure;

/// A value of a service level.
pub(crate) fn value(measure: Measure, value: f64) -> String {
    match measure {
        Measure::Seconds(_) => duration(value * 1e3),
        Measure::Usd(_) => usd(value),
        Measure::Share => share(value),
    }
}

pub(crate) fn duration(ms: f64) -> String {
    match ms {
        _ if ms < 0.05 => "0 ms".to_owned(),
        _ if ms < 9.95 => format!("{} ms", trimmed(ms, 1)),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ if ms < 59_950.0 => format!("{} s", trimmed(ms / 1e3, 2)),
        _ => format!("{:.0} min", ms / 60e3),
    }
}

pub(crate) fn usd(usd: f64) -> String {
    match usd {
        0.0 => "$0".to_owned(),
        _ if usd < 0.000_000_5 => "< $0.000001".to_owned(),
        _ if usd < 0.001 => format!("${}", trimmed(usd, 6)),
        _ if usd < 1.0 => format!("${}", trimmed(usd, 4)),
        _ => format!("${usd:.2}"),
    }
}

pub(crate) fn nanousd(nanousd: u64) -> String {
    usd(nanousd as f64 / 1e9)
}

pub(crate) fn share(share: f64) -> String {
    format!("{} %", trimmed(share * 100.0, if share < 0.1 { 2 } else { 1 }))
}

pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", trimmed(bytes as f64 / 1024.0, 1)),
        1_048_576..1_073_741_824 => format!("{} MiB", trimmed(bytes as f64 / 1_048_576.0, 1)),
        _ => format!("{} GiB", trimmed(bytes as f64 / 1_073_741_824.0, 1)),
    }
}

/// With separators: 1,234,567.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A stretch of whole seconds: `42 s`, `7 min`, `3 h 5 min`, `2 d`.
pub(crate) fn stretch(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 if seconds % 3600 / 60 == 0 => format!("{} h", seconds / 3600),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `08:41:46`, UTC.
pub(crate) fn time_of_day(us: u64) -> String {
    let s = us / 1_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60)
}

/// `08:41`, UTC.
pub(crate) fn minute_of_day(minute: u64) -> String {
    format!("{:02}:{:02}", minute / 60 % 24, minute % 60)
}

/// `2026-11-23 08:41:46.535`, UTC.
pub(crate) fn moment(us: u64) -> String {
    let iso = crate::langsmith::order::iso(us);
    iso.get(..23).unwrap_or_default().replace('T', " ")
}

fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        let durations = [0.0, 0.26, 9.96, 300.0, 999.6, 1280.0, 59_960.0, 120_000.0].map(duration);
        assert_eq!(durations, ["0 ms", "0.3 ms", "10 ms", "300 ms", "1 s", "1.28 s", "1 min", "2 min"]);
        let usds = [0.0, 1e-9, 0.000_012, 0.01, 0.05, 12.3].map(usd);
        assert_eq!(usds, ["$0", "< $0.000001", "$0.000012", "$0.01", "$0.05", "$12.30"]);
        assert_eq!([0.0, 0.005, 0.02, 0.125, 1.0].map(share), ["0 %", "0.5 %", "2 %", "12.5 %", "100 %"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1536, 1 << 30].map(bytes), ["0 B", "1.5 KiB", "1 GiB"]);
        assert_eq!([59, 600, 7200, 11_100, 200_000].map(stretch), ["59 s", "10 min", "2 h", "3 h 5 min", "2 d"]);
        assert_eq!(time_of_day(1_795_509_895_000_000), "08:44:55");
        assert_eq!(moment(1_795_509_895_123_456), "2026-11-24 08:44:55.123");
        assert_eq!(minute_of_day(1_795_509_895 / 60), "08:44");
    }
}
