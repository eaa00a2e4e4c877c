//! A service level's last hour as an inline SVG: one bar a minute, and lines for its target and its alert.

use maud::{Markup, html};

use super::format;
use crate::dashboard::history::{Level, MINUTES};
use crate::metrics::slo::Slo;

const WIDTH: f64 = 360.0;
const TOP: f64 = 14.0;
const BASE: f64 = 112.0;
const HEIGHT: f64 = 130.0;

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Within,
    Missed,
    Alert,
}

impl Standing {
    pub(super) fn of(slo: &Slo, value: f64) -> Self {
        match value {
            _ if value > slo.alert => Self::Alert,
            _ if value > slo.target => Self::Missed,
            _ => Self::Within,
        }
    }

    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Within => "ok",
            Self::Missed => "warn",
            Self::Alert => "bad",
        }
    }
}

/// `minutes` are one hour, the oldest first.
pub(super) fn plot(slo: &Slo, minutes: &[(u64, Level)], summary: &str) -> Markup {
    let highest = minutes.iter().filter_map(|(_, level)| level.value).fold(0.0, f64::max);
    // The alert is drawn where it is not far away: else everything below it would be flat.
    let far = slo.alert > slo.target * 2.5 && highest <= slo.target;
    let lowest_top = if far { slo.target * 1.5 } else { slo.alert * 1.15 };
    // One minute of two requests must not flatten the hour: what is higher is cut, with an arrow.
    let top = (highest * 1.1).clamp(lowest_top, slo.alert * 2.0);
    let y = |value: f64| BASE - (BASE - TOP) * (value / top).min(1.0);
    let step = WIDTH / MINUTES as f64;
    html! {
        svg.plot viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(summary) {
            line.axis x1="0" x2=(WIDTH) y1=(BASE) y2=(BASE) {}
            @for (place, (minute, level)) in minutes.iter().enumerate() {
                @if let Some(value) = level.value {
                    // A minute with requests shows even where its value is zero.
                    @let height = (BASE - y(value)).max(2.0);
                    @let x = place as f64 * step;
                    @if value > top {
                        path.cut d={ "M" (tenths(x)) " " (TOP - 3.0) "h" (tenths(step)) "l" (tenths(-step / 2.0)) " -5z" } {}
                    }
                    rect class={ "bar " (Standing::of(slo, value).class()) }
                        x=(tenths(x + 0.6)) width=(tenths(step - 1.2))
                        y=(tenths(BASE - height)) height=(tenths(height)) rx="1" {
                        title {
                            (format::minute_of_day(*minute)) " UTC: " (format::value(slo.measure, value)) ", "
                            (format::count(level.count)) @if level.count == 1 { " request" } @else { " requests" }
                        }
                    }
                }
            }
            (threshold("target", slo, slo.target, y(slo.target), 2.0))
            @if slo.alert <= top { (threshold("alert", slo, slo.alert, y(slo.alert), WIDTH - 2.0)) }
            text.tick x="0" y=(HEIGHT - 3.0) { (minutes.first().map(|(minute, _)| format::minute_of_day(*minute)).unwrap_or_default()) }
            text.tick.middle x=(WIDTH / 2.0) y=(HEIGHT - 3.0) { (minutes.get(MINUTES / 2).map(|(minute, _)| format::minute_of_day(*minute)).unwrap_or_default()) }
            text.tick.end x=(WIDTH) y=(HEIGHT - 3.0) { "now" }
        }
    }
}

/// Their labels stand on different sides: the two may be close.
fn threshold(name: &str, slo: &Slo, value: f64, y: f64, x: f64) -> Markup {
    html! {
        line class={ "threshold " (name) } x1="0" x2=(WIDTH) y1=(tenths(y)) y2=(tenths(y)) {}
        text class={ "label " (name) } x=(x) y=(tenths(y - 3.5)) { (name) " " (format::value(slo.measure, value)) }
    }
}

/// Shorter in the page, and no difference on a screen.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::slo;

    fn drawn(slo: &Slo, value: f64) -> String {
        let mut minutes = vec![(0, Level { count: 0, value: None }); MINUTES];
        minutes[59] = (61, Level { count: 3, value: Some(value) });
        plot(slo, &minutes, "summary").into_string()
    }

    #[test]
    fn a_minute_is_a_bar_in_its_standing_and_an_empty_one_is_none() {
        for (value, class) in [(0.3, "bar ok"), (0.31, "bar warn"), (0.51, "bar bad")] {
            let drawn = drawn(&slo::TIME_TO_FIRST_TOKEN, value);
            assert_eq!(drawn.matches("<rect").count(), 1);
            assert!(drawn.contains(class), "{value}: {drawn}");
            assert!(drawn.contains("01:01 UTC: ") && drawn.contains("3 requests"), "{drawn}");
        }
        assert!(drawn(&slo::INPUT_BLOCKS, 0.0).contains(r#"height="2""#), "a rate of zero is not no data");
    }

    #[test]
    fn the_alert_is_drawn_when_it_is_near() {
        assert!(drawn(&slo::TIME_TO_FIRST_TOKEN, 0.1).contains("alert 500 ms"));
        assert!(!drawn(&slo::INPUT_BLOCKS, 0.01).contains("alert"));
        assert!(drawn(&slo::INPUT_BLOCKS, 0.03).contains("alert 10 %"));
        let cut = drawn(&slo::INPUT_BLOCKS, 1.0);
        assert!(
            cut.contains("<path class=\"cut\"") && cut.contains("100 %"),
            "a value above the plot still tells itself: {cut}"
        );
    }
}
