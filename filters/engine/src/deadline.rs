//! How long a request may take: from its head to the end of its answer, all attempts and callouts together.

use crate::reason::{Reason, Refusal};

/// The client's own limit, in milliseconds.
pub const HEADER: &str = "x-request-timeout-ms";

/// An hour: the longest that a client may ask for.
pub const MAX_MS: u64 = 3_600_000;

/// What the client asks for.
///
/// # Errors
/// 400 where the header is no whole number of milliseconds from 1 to [`MAX_MS`].
pub fn asked(value: Option<&[u8]>) -> Result<Option<u64>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let digits = core::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let asked = digits.and_then(|text| text.parse().ok()).filter(|ms| (1..=MAX_MS).contains(ms));
    asked.map(Some).ok_or_else(|| {
        let message = format!("`{HEADER}` must be a whole number of milliseconds from 1 to {MAX_MS}.");
        Refusal::new(Reason::InvalidRequest, message).at(HEADER)
    })
}

/// Envoy's timers run early by so much at most, by the filter's clock.
const TIMER_US: u64 = 10_000;

/// When a request has to be over; `None`: it may take what it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deadline(Option<u64>);

impl Deadline {
    /// The shorter of what client and operator say, from the request's beginning on.
    #[must_use]
    pub fn new(start_us: u64, asked_ms: Option<u64>, operator_ms: Option<u64>) -> Self {
        let total_ms = asked_ms.into_iter().chain(operator_ms).min();
        Self(total_ms.map(|ms| start_us.saturating_add(ms.saturating_mul(1000))))
    }

    /// Milliseconds left, at least 1 as long as any time is; `Some(0)`: it is over.
    #[must_use]
    pub fn left_ms(self, now_us: u64) -> Option<u64> {
        self.0.map(|at_us| at_us.saturating_sub(now_us).div_ceil(1000))
    }

    #[must_use]
    pub fn is_over(self, now_us: u64) -> bool {
        self.left_ms(now_us) == Some(0)
    }

    /// As [`Deadline::is_over`] where one of Envoy's timers says when it is.
    #[must_use]
    pub fn has_run_out(self, now_us: u64) -> bool {
        self.is_over(now_us.saturating_add(TIMER_US))
    }

    /// The limit of a callout: its own, or what is left. Never 0, which Envoy takes for no limit.
    #[must_use]
    pub fn bound_ms(self, limit_ms: u64, now_us: u64) -> u64 {
        self.left_ms(now_us).map_or(limit_ms, |left_ms| limit_ms.min(left_ms).max(1))
    }
}

/// The answer when time is up and nothing has left.
#[must_use]
pub fn refusal() -> Refusal {
    Refusal::new(Reason::UpstreamTimeout, "No model answered in time.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_asks_in_whole_milliseconds_up_to_an_hour() {
        for (value, expected) in [
            (None, Some(None)),
            (Some("1"), Some(Some(1))),
            (Some("0250"), Some(Some(250))),
            (Some("3600000"), Some(Some(3_600_000))),
            (Some("3600001"), None),
            (Some("0"), None),
            (Some(""), None),
            (Some("-5"), None),
            (Some("+5"), None),
            (Some(" 5"), None),
            (Some("1.5"), None),
            (Some("5s"), None),
            (Some("99999999999999999999999"), None),
            (Some("\u{665}"), None),
        ] {
            let asked = asked(value.map(str::as_bytes));
            assert_eq!(asked.clone().ok(), expected, "{value:?}");
            if let Err(refusal) = asked {
                assert_eq!((refusal.reason.status(), refusal.param.as_deref()), (400, Some(HEADER)));
            }
        }
        assert!(asked(Some(b"\xff")).is_err());
    }

    #[test]
    fn the_shorter_limit_counts_and_bounds_what_is_asked_meanwhile() {
        for (client, operator, now_us, left, bound) in [
            (None, None, 9_000_000, None, 5000),
            (Some(2000), None, 500_000, Some(1500), 1500),
            (Some(2000), Some(1000), 500_000, Some(500), 500),
            (Some(500), Some(9000), 499_999, Some(1), 1),
            (Some(500), Some(9000), 500_000, Some(0), 1),
            (None, Some(60_000), 1_000_000, Some(59_000), 5000),
        ] {
            let deadline = Deadline::new(0, client, operator);
            assert_eq!((deadline.left_ms(now_us), deadline.bound_ms(5000, now_us)), (left, bound));
            assert_eq!(deadline.is_over(now_us), left == Some(0));
            assert_eq!(deadline.has_run_out(now_us), left.is_some_and(|left| left <= 10));
        }
    }
}
