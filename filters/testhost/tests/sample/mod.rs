//! A small filter whose behaviour each stream chooses with the header `x-mode`.
#![expect(clippy::disallowed_methods, reason = "drives the SDK as filters commonly do, panics and all")]

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MapType, MetricType, Status};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { id: String::new(), streams: 0 }));
}}

struct Root {
    id: String,
    streams: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let id = hostcalls::get_property(vec!["plugin_root_id"]).unwrap().unwrap();
        self.id = String::from_utf8(id).unwrap();
        self.streams = hostcalls::define_metric(MetricType::Counter, "streams").unwrap();
        hostcalls::set_tick_period(Duration::from_millis(250)).unwrap();
        let configuration = self.get_plugin_configuration().unwrap_or_default();
        log::info!("{} configured with {}", self.id, String::from_utf8_lossy(&configuration));
        configuration != b"\"refuse me\""
    }

    fn on_tick(&mut self) {
        self.set_shared_data("ticked", Some(b"yes"), None).unwrap();
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        hostcalls::increment_metric(self.streams, 1).unwrap();
        if self.id == "provider" {
            return Some(Box::new(Provider));
        }
        Some(Box::new(Gateway { mode: String::new(), verdict: Verdict::None, seen: String::new() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

#[derive(PartialEq)]
enum Verdict {
    None,
    Pending,
    In,
}

struct Gateway {
    mode: String,
    verdict: Verdict,
    /// One word per callback, for the record.
    seen: String,
}

impl Gateway {
    fn note(&mut self, word: &str) {
        self.seen.push_str(word);
        self.seen.push(' ');
    }

    fn ask(&mut self) {
        let headers = vec![(":method", "POST"), (":path", "/judge"), (":authority", "guard")];
        let limit = Duration::from_millis(300);
        match self.dispatch_http_call("guard", headers, Some(b"is it safe?"), vec![], limit) {
            Ok(_) => self.verdict = Verdict::Pending,
            Err(status) => {
                assert_eq!(status, Status::BadArgument);
                self.send_http_response(503, vec![], Some(b"no guard"));
            }
        }
    }
}

impl Context for Gateway {
    fn on_http_call_response(&mut self, _token: u32, num_headers: usize, body_size: usize, _trailers: usize) {
        self.verdict = Verdict::In;
        self.note(&format!("verdict:{num_headers}:{body_size}"));
        let status = match num_headers {
            0 => None,
            _ => hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status").unwrap(),
        };
        let verdict = hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, body_size).unwrap();
        match (status.as_deref(), verdict.as_deref()) {
            (Some(b"200"), Some(b"rewrite")) => {
                hostcalls::set_buffer(BufferType::HttpResponseBody, 0, usize::MAX, b"rewritten").unwrap();
                self.resume_http_response();
            }
            (Some(b"200"), Some(b"resume the request")) => self.resume_http_request(),
            (Some(b"200"), _) => self.resume_http_response(),
            _ => self.send_http_response(403, vec![("x-reason", "unsafe")], Some(b"blocked")),
        }
    }

    fn on_done(&mut self) -> bool {
        hostcalls::log(LogLevel::Info, "done").unwrap();
        true
    }
}

impl HttpContext for Gateway {
    fn on_http_request_headers(&mut self, _num: usize, end: bool) -> Action {
        self.note(if end { "request-head!" } else { "request-head" });
        let mode = hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, "x-mode").unwrap().unwrap();
        self.mode = String::from_utf8(mode).unwrap();
        match self.mode.as_str() {
            "deny" => {
                self.send_http_response(401, vec![], Some(b"who are you?"));
                // A local reply stops the iteration, whatever is returned.
                Action::Continue
            }
            "upper" | "upper-wrong-length" => {
                if self.mode == "upper" {
                    hostcalls::remove_map_value(MapType::HttpRequestHeaders, "content-length").unwrap();
                }
                Action::Pause
            }
            "leak" | "ask-first" => {
                self.ask();
                Action::Pause
            }
            "resume-then-pause" => {
                self.resume_http_request();
                Action::Pause
            }
            "ask" | "ask-leak" => {
                self.ask();
                Action::Continue
            }
            "contend" => {
                let (_, cas) = self.get_shared_data("leases");
                let result = self.set_shared_data("leases", Some(b"mine"), cas);
                self.note(&format!("{result:?}"));
                Action::Continue
            }
            "unmodelled" => {
                self.register_shared_queue("a queue");
                Action::Continue
            }
            "foreign" => {
                assert_eq!(hostcalls::call_foreign_function("set_dynamic_metadata", None), Err(Status::NotFound));
                hostcalls::call_foreign_function("clear_route_cache", None).unwrap();
                Action::Continue
            }
            _ => Action::Continue,
        }
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        self.note(&format!("request-body:{size}{}", if end { "!" } else { "" }));
        match self.mode.as_str() {
            "upper" | "upper-wrong-length" if !end => Action::Pause,
            "upper" | "upper-wrong-length" => {
                let mut body = self.get_http_request_body(0, size).unwrap_or_default();
                body.make_ascii_uppercase();
                body.push(b'!');
                self.set_http_request_body(0, size, &body);
                Action::Continue
            }
            "ask-first" if self.verdict == Verdict::Pending => Action::Pause,
            "resume-then-pause" => Action::Pause,
            _ => Action::Continue,
        }
    }

    fn on_http_response_headers(&mut self, _num: usize, end: bool) -> Action {
        self.note(if end { "response-head!" } else { "response-head" });
        assert!(hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap().is_empty());
        assert_eq!(hostcalls::get_property(vec!["request", "path"]).unwrap(), None);
        let status = hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, ":status").unwrap().unwrap();
        self.note(&String::from_utf8(status).unwrap());
        match self.mode.as_str() {
            "too-late" => Action::Continue,
            "first-byte" => Action::Pause,
            _ if self.verdict == Verdict::Pending => Action::Pause,
            _ => Action::Continue,
        }
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        self.note(&format!("response-body:{size}{}", if end { "!" } else { "" }));
        match self.mode.as_str() {
            "too-late" => {
                self.send_http_response(403, vec![], None);
                Action::Continue
            }
            "reset" => {
                self.reset_http_response();
                Action::Continue
            }
            "ask-leak" => Action::Continue,
            _ if self.verdict == Verdict::Pending => Action::Pause,
            _ => Action::Continue,
        }
    }

    fn on_log(&mut self) {
        let path = hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, ":path").unwrap().unwrap();
        let code = hostcalls::get_property(vec!["response", "code"]).unwrap();
        let code = code.map_or(0, |code| u64::from_le_bytes(code.try_into().unwrap()));
        let record = format!("{} {code} {}", String::from_utf8(path).unwrap(), self.seen.trim_end());
        hostcalls::set_property(vec!["record"], Some(record.as_bytes())).unwrap();
        assert_eq!(hostcalls::get_property(vec!["record"]).unwrap().unwrap(), record.as_bytes());
        hostcalls::log(LogLevel::Info, "log").unwrap();
    }
}

/// Sets the path, withholds the head of an answer until its first bytes, and turns an error event into a 503.
struct Provider;

impl Context for Provider {
    fn on_done(&mut self) -> bool {
        hostcalls::log(LogLevel::Info, "attempt done").unwrap();
        true
    }
}

impl HttpContext for Provider {
    fn on_http_request_headers(&mut self, _num: usize, _end: bool) -> Action {
        let host = hostcalls::get_property(vec!["xds", "upstream_host_metadata"]);
        let path = match host {
            Ok(Some(name)) => format!("/{}", String::from_utf8(name).unwrap()),
            Ok(None) => {
                self.send_http_response(500, vec![], Some(b"no host"));
                return Action::Pause;
            }
            Err(status) => format!("/{status:?}"),
        };
        hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, ":path", Some(path.as_bytes())).unwrap();
        hostcalls::set_property(vec!["provider"], Some(path.as_bytes())).unwrap();
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _num: usize, _end: bool) -> Action {
        Action::Pause
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        let body = self.get_http_response_body(0, size).unwrap_or_default();
        if body.is_empty() && !end {
            return Action::Pause;
        }
        if body.starts_with(b"error") {
            hostcalls::set_map_value_bytes(MapType::HttpResponseHeaders, ":status", Some(b"503")).unwrap();
        }
        Action::Continue
    }
}
