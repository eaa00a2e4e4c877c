//! docs/errors.md against the reasons.

use parapet_engine::reason::{Reason, Refusal};

use crate::page::{Page, code};

/// Every reason. A new one does not compile here until it stands in the list, and then not pass until it is documented.
const ALL: [Reason; 18] = {
    use Reason as R;
    const fn is_listed(reason: R) {
        match reason {
            R::InvalidJson
            | R::InvalidRequest
            | R::InvalidApiKey
            | R::ContentBlocked
            | R::ContentNotJudged
            | R::OutputBlocked
            | R::ModelNotAllowed
            | R::ModelNotFound
            | R::NotFound
            | R::MethodNotAllowed
            | R::RequestTooLarge
            | R::RateLimitExceeded
            | R::BudgetExceeded
            | R::GuardUnavailable
            | R::QuotaUnavailable
            | R::NotCached
            | R::UpstreamError
            | R::UpstreamTimeout => {}
        }
    }
    is_listed(R::InvalidJson);
    [
        R::InvalidJson,
        R::InvalidRequest,
        R::InvalidApiKey,
        R::ContentBlocked,
        R::ContentNotJudged,
        R::OutputBlocked,
        R::ModelNotAllowed,
        R::ModelNotFound,
        R::NotFound,
        R::MethodNotAllowed,
        R::RequestTooLarge,
        R::RateLimitExceeded,
        R::BudgetExceeded,
        R::GuardUnavailable,
        R::QuotaUnavailable,
        R::NotCached,
        R::UpstreamError,
        R::UpstreamTimeout,
    ]
};

#[test]
fn every_reason_stands_in_the_table_as_it_is() {
    let mut rows = Page::open("docs/errors.md").rows("Status");
    for reason in ALL {
        let of_it = |row: &Vec<String>| code(&row[1]) == Some(reason.code());
        let at = rows.iter().position(of_it).unwrap_or_else(|| panic!("`{}` is not documented", reason.code()));
        let mut lines = 0;
        let body: serde_json::Value = serde_json::from_slice(&Refusal::new(reason, "").body()).unwrap();
        for row in rows.iter().filter(|row| of_it(row)) {
            assert_eq!(row[0], reason.status().to_string(), "{row:?}");
            assert_eq!(code(&row[2]), body["error"]["type"].as_str(), "{row:?}");
            assert_eq!(row[3].contains("x-should-retry"), reason.retry_is_pointless(), "{row:?}");
            lines += 1;
        }
        assert_eq!(lines, 1, "`{}` stands more than once", reason.code());
        rows.remove(at);
    }
    assert!(rows.is_empty(), "no such reason: {rows:?}");
}
