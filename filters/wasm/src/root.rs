//! The root context: takes a configuration in, and makes a stream of the kind that its plugin's `root_id` names.

use std::rc::Rc;

use parapet_engine::config::Config;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;

use crate::gateway::GatewayStream;
use crate::host;
use crate::provider::ProviderStream;
use crate::shared::Shared;

#[derive(Default)]
pub(crate) struct Root {
    shared: Option<(Kind, Rc<Shared>)>,
}

#[derive(Clone, Copy)]
enum Kind {
    Gateway,
    Provider,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let kind = match host::property(&["plugin_root_id"]).as_deref() {
            Some(b"gateway") => Kind::Gateway,
            Some(b"provider") => Kind::Provider,
            other => {
                let name = String::from_utf8_lossy(other.unwrap_or_default()).into_owned();
                log::error!("parapet: root_id: expected `gateway` or `provider`; got `{name}`");
                return false;
            }
        };
        let json = self.get_plugin_configuration().unwrap_or_default();
        match Config::parse(&json).and_then(Shared::new) {
            Ok(shared) => {
                if let Kind::Gateway = kind {
                    shared.prepare_quota();
                }
                self.shared = Some((kind, Rc::new(shared)));
                true
            }
            Err(error) => {
                log::error!("parapet: configuration refused: {error}");
                false
            }
        }
    }

    fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
        let (kind, shared) = self.shared.as_ref()?;
        Some(match kind {
            Kind::Gateway => Box::new(GatewayStream::new(Rc::clone(shared))),
            Kind::Provider => Box::new(ProviderStream::new(Rc::clone(shared))),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
