//! The verdict: a word list instead of a network, the tokens and probabilities a network would give.

use serde_json::{Map, Value, json};

use super::{
    super::{answers, faults::Behaviour},
    family::Family,
    template::{GuardPrompt, Role},
};

const WORDS: [(u8, &[&str]); 14] = [
    (1, &["kill someone", "murder", "unsafe-s1"]),
    (2, &["steal a car", "hotwire", "launder money", "unsafe-s2"]),
    (3, &["sexual assault", "unsafe-s3"]),
    (4, &["child exploitation", "unsafe-s4"]),
    (5, &["spread lies about", "unsafe-s5"]),
    (6, &["stop taking your medication", "unsafe-s6"]),
    (7, &["home address of", "social security number of", "unsafe-s7"]),
    (8, &["crack the license", "pirate the film", "unsafe-s8"]),
    (9, &["build a bomb", "pipe bomb", "nerve gas", "unsafe-s9"]),
    (10, &["hateslur", "unsafe-s10"]),
    (11, &["kill myself", "suicide method", "unsafe-s11"]),
    (12, &["explicit sex", "unsafe-s12"]),
    (13, &["election date was moved", "unsafe-s13"]),
    (14, &["container escape", "unsafe-s14"]),
];
/// Text with this is unsafe with a probability of [`BORDERLINE`] only.
const BORDERLINE_WORD: &str = "borderline-unsafe";
const UNSAFE: f64 = 0.98;
const BORDERLINE: f64 = 0.6;
const SAFE: f64 = 0.02;
/// Of tokens the guard is sure of.
const SURE: f64 = -0.0002;
/// What stands below the two verdicts in `top_logprobs`, from here downwards.
const FILLERS: [&str; 18] = [
    " safe", "Safe", "\n", " unsafe", "un", "S", "The", "I", "SAFE", "sa", "yes", "no", "-", "a", "fe", "Un", "The ",
    "\n\n\n",
];
const FILLER_LOGPROB: f64 = -9.0;

/// One generated token and the likeliest ones at its place, itself included, likeliest first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Generated {
    pub(super) text: String,
    logprob: f64,
    top: Vec<(String, f64)>,
}

impl Generated {
    fn sure(text: &str) -> Self {
        Self::among(text, &[(text, SURE)])
    }

    fn among(text: &str, candidates: &[(&str, f64)]) -> Self {
        let fillers = FILLERS.iter().zip(0..).map(|(filler, rank)| (*filler, FILLER_LOGPROB - 0.5 * f64::from(rank)));
        let known = |filler: &str| candidates.iter().any(|(candidate, _)| *candidate == filler);
        let mut top: Vec<(String, f64)> = candidates
            .iter()
            .copied()
            .chain(fillers.filter(|(filler, _)| !known(filler)))
            .map(|(token, logprob)| (token.to_owned(), logprob))
            .collect();
        top.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let logprob = candidates.iter().find(|(candidate, _)| *candidate == text).map_or(SURE, |(_, logprob)| *logprob);
        Self { text: text.to_owned(), logprob, top }
    }

    fn likeliest(&self, top: usize) -> impl Iterator<Item = &(String, f64)> {
        self.top.iter().take(top)
    }
}

pub(super) fn generate(prompt: &GuardPrompt, behaviour: &Behaviour) -> Vec<Generated> {
    let start = (!prompt.verdict_first).then(|| Generated::sure("\n\n"));
    let verdict = match behaviour {
        Behaviour::Empty => return Vec::new(),
        Behaviour::Text(text) => answers::tokens(text).into_iter().map(Generated::sure).collect(),
        _ => verdict(prompt),
    };
    start.into_iter().chain(verdict).collect()
}

fn verdict(prompt: &GuardPrompt) -> Vec<Generated> {
    let text = prompt.text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let listed = WORDS.iter().filter(|(category, _)| prompt.categories.contains(category));
    let mut violated: Vec<u8> = listed
        .filter(|(_, words)| words.iter().any(|word| contains(&text, word)))
        .map(|(category, _)| *category)
        .collect();
    let mut probability = if violated.is_empty() { SAFE } else { UNSAFE };
    if text.contains(BORDERLINE_WORD) {
        probability = BORDERLINE;
        if violated.is_empty() {
            violated.extend(prompt.categories.first());
        }
    }
    let (bad, good) = prompt.family.verdicts();
    let candidates = [(bad, probability.ln()), (good, (1.0 - probability).ln())];
    let mut tokens = vec![Generated::among(if violated.is_empty() { good } else { bad }, &candidates)];
    match prompt.family {
        Family::LlamaGuard3 | Family::LlamaGuard4 if violated.is_empty() => {}
        Family::LlamaGuard3 | Family::LlamaGuard4 => {
            tokens.push(Generated::sure("\n"));
            for (index, category) in violated.iter().enumerate() {
                if index > 0 {
                    tokens.push(Generated::sure(","));
                }
                tokens.push(Generated::sure("S"));
                tokens.push(Generated::sure(&category.to_string()));
            }
        }
        Family::Qwen3Guard => {
            let mut names: Vec<String> = violated.iter().filter_map(|number| prompt.family.category(*number)).collect();
            names.dedup();
            let named = if names.is_empty() { "None".to_owned() } else { names.join(", ") };
            let refusal = if prompt.judged == Role::Agent { "\nRefusal: No" } else { "" };
            let lines = format!("\nCategories: {named}{refusal}");
            tokens.extend(answers::tokens(&lines).into_iter().map(Generated::sure));
        }
        Family::ShieldGemma => tokens.push(Generated::sure("\n\nStep by step.")),
    }
    tokens
}

/// A word that ends in a digit ends there in the text too: `unsafe-s1` is not in `unsafe-s10`.
fn contains(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let next = text.get(at + word.len()..).and_then(|rest| rest.chars().next());
        !(word.ends_with(|c: char| c.is_ascii_digit()) && next.is_some_and(|c| c.is_ascii_digit()))
    })
}

/// `choices[].logprobs` of `/v1/completions`. As vLLM does it, the token said is listed even below the `top` likeliest.
pub(super) fn completion_logprobs(tokens: &[Generated], top: usize) -> Value {
    let mut offset = 0;
    let (mut offsets, mut tops) = (Vec::new(), Vec::new());
    for token in tokens {
        offsets.push(offset);
        offset += token.text.chars().count();
        let mut likeliest: Map<String, Value> =
            token.likeliest(top).map(|(text, logprob)| (text.clone(), json!(logprob))).collect();
        likeliest.insert(token.text.clone(), json!(token.logprob));
        tops.push(likeliest);
    }
    json!({
        "text_offset": offsets,
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "tokens": tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(),
        "top_logprobs": tops,
    })
}

/// `choices[].logprobs` of `/v1/chat/completions`.
pub(super) fn chat_logprobs(tokens: &[Generated], top: usize) -> Value {
    let entry = |text: &str, logprob: f64| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let likeliest: Vec<Value> = token.likeliest(top).map(|(text, logprob)| entry(text, *logprob)).collect();
            let mut content = entry(&token.text, token.logprob);
            if let Some(content) = content.as_object_mut() {
                content.insert("top_logprobs".into(), json!(likeliest));
            }
            content
        })
        .collect();
    json!({"content": content})
}

#[cfg(test)]
mod tests {
    use super::{super::template::render, *};

    fn said(text: &str) -> String {
        let prompt = GuardPrompt::parse(Family::LlamaGuard3, &render(&[("user", text.to_owned())]).unwrap()).unwrap();
        generate(&prompt, &Behaviour::Honest).iter().map(|token| token.text.as_str()).collect()
    }

    #[test]
    fn each_category_has_its_test_word() {
        for category in 1..=14 {
            assert_eq!(said(&format!("x UNSAFE-S{category}.")), format!("\n\nunsafe\nS{category}"));
        }
        assert_eq!(said("a pipe\n  BOMB and murder"), "\n\nunsafe\nS1,S9");
        assert_eq!(said("good morning"), "\n\nsafe");
    }

    #[test]
    fn a_category_the_prompt_does_not_list_never_fires() {
        let text = render(&[("user", "murder by pipe bomb".to_owned())]).unwrap().replace("S1: Violent Crimes.\n", "");
        let tokens = generate(&GuardPrompt::parse(Family::LlamaGuard3, &text).unwrap(), &Behaviour::Honest);
        assert_eq!(tokens.last().unwrap().text, "9");
        assert_eq!(tokens.len(), 5);
    }

    #[test]
    fn probabilities_of_the_two_verdicts_add_up() {
        for (text, expected) in [("murder", 0.98), ("hello", 0.02), ("borderline-unsafe", 0.6)] {
            let prompt =
                GuardPrompt::parse(Family::LlamaGuard3, &(render(&[("user", text.to_owned())]).unwrap() + "\n\n"))
                    .unwrap();
            let tokens = generate(&prompt, &Behaviour::Honest);
            let logprobs = completion_logprobs(&tokens, 5);
            let top = &logprobs["top_logprobs"][0];
            let (bad, good) = (top["unsafe"].as_f64().unwrap().exp(), top["safe"].as_f64().unwrap().exp());
            assert!((bad - expected).abs() < 1e-9 && (bad + good - 1.0).abs() < 1e-9, "{text}");
            assert_eq!(top.as_object().unwrap().len(), 5);
            assert_eq!(logprobs["tokens"][0], if expected > 0.5 { "unsafe" } else { "safe" });
        }
    }
}
