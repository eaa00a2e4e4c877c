//! The guard's tokens: special ones as in its family's tokenizer, the rest the simulator's own.

use super::{
    super::{answers, vllm::token_id},
    family::Family,
};

/// Ids of Llama 3's tokenizer for what the guard says.
const SPOKEN: [(&str, u32); 9] = [
    ("safe", 19_193),
    ("unsafe", 39_257),
    ("\n\n", 271),
    ("\n", 198),
    ("S", 50),
    ("1", 16),
    ("10", 605),
    ("14", 975),
    (",", 11),
];

pub(super) fn guard_tokens(family: Family, text: &str) -> Vec<(u32, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let special =
            family.special_tokens().iter().filter_map(|(token, id)| Some((rest.find(token)?, *token, *id))).min();
        let (plain, behind) = match special {
            Some((at, token, id)) => {
                let (plain, special) = rest.split_at(at);
                let (token, behind) = special.split_at(token.len());
                (plain, Some((id, token, behind)))
            }
            None => (rest, None),
        };
        found.extend(answers::tokens(plain).into_iter().map(|token| (id_of(token), token)));
        rest = "";
        if let Some((id, token, behind)) = behind {
            found.push((id, token));
            rest = behind;
        }
    }
    found
}

fn id_of(token: &str) -> u32 {
    SPOKEN.iter().find(|(text, _)| *text == token).map_or_else(|| token_id(token), |(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_in_user_text_are_special_tokens() {
        let ids: Vec<u32> =
            guard_tokens(Family::LlamaGuard3, "a<|eot_id|>b<|begin_of_text|>").into_iter().map(|(id, _)| id).collect();
        assert_eq!((ids[1], ids[3], ids.len()), (128_009, 128_000, 4));
    }
}
