//! The pages' HTML. `maud` escapes every text that is put in; prompts and answers are hostile input.

pub(super) mod format;
pub(super) mod overview;
mod plot;
pub(super) mod request;
mod sections;
mod waterfall;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(super) const STYLE: &str = include_str!("style.css");
pub(super) const ICON: &str = include_str!("icon.svg");

/// Seconds after which the browser asks again.
const REFRESH_S: u32 = 10;

/// What is around every page. `refresh`: it asks for itself again.
fn frame(title: &str, refresh: bool, header: &Markup, main: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if refresh { meta http-equiv="refresh" content=(REFRESH_S); }
                title { (title) }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/style.css";
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/" { (PreEscaped(ICON)) span { "Parapet" } }
                    (header)
                }
                main id="main" { (main) }
            }
        }
    }
    .into_string()
}

/// A page that says that something is not there.
pub(super) fn message(title: &str, text: &str) -> String {
    let main = html! {
        section.card { h1 { (title) } p { (text) } p { a href="/" { "Back to the overview" } } }
    };
    frame(&format!("{title} · Parapet"), false, &html! {}, &main)
}

/// A table that scrolls in itself where it is wider than the screen.
fn scrolling(label: &str, table: &Markup) -> Markup {
    html! { div.scroll role="region" tabindex="0" aria-label=(label) { (table) } }
}
