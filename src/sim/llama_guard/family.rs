//! The families of guards that are simulated: their special tokens, and what a verdict is called.

/// Which guard is simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// Llama Guard 3, 8B and 1B
    #[default]
    LlamaGuard3,
    LlamaGuard4,
    Qwen3Guard,
    ShieldGemma,
}

impl Family {
    /// Text that is one token to the model wherever it stands, with its id in the family's own tokenizer.
    pub(super) const fn special_tokens(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::LlamaGuard3 => &[
                ("<|begin_of_text|>", 128_000),
                ("<|end_of_text|>", 128_001),
                ("<|start_header_id|>", 128_006),
                ("<|end_header_id|>", 128_007),
                ("<|eom_id|>", 128_008),
                ("<|eot_id|>", 128_009),
            ],
            Self::LlamaGuard4 => &[
                ("<|begin_of_text|>", 200_000),
                ("<|end_of_text|>", 200_001),
                ("<|header_start|>", 200_005),
                ("<|header_end|>", 200_006),
                ("<|eom|>", 200_007),
                ("<|eot|>", 200_008),
            ],
            Self::Qwen3Guard => &[
                ("<|endoftext|>", 151_643),
                ("<|im_start|>", 151_644),
                ("<|im_end|>", 151_645),
                ("<think>", 151_667),
                ("</think>", 151_668),
            ],
            Self::ShieldGemma => &[
                ("<pad>", 0),
                ("<eos>", 1),
                ("<bos>", 2),
                ("<unk>", 3),
                ("<start_of_turn>", 106),
                ("<end_of_turn>", 107),
            ],
        }
    }

    /// The first token of an unsafe and of a safe verdict.
    pub(super) const fn verdicts(self) -> (&'static str, &'static str) {
        match self {
            Self::LlamaGuard3 | Self::LlamaGuard4 => ("unsafe", "safe"),
            Self::Qwen3Guard => (" Unsafe", " Safe"),
            Self::ShieldGemma => ("Yes", "No"),
        }
    }

    /// What it calls a hazard of Llama Guard's list; `None` for a family that names none.
    pub(super) fn category(self, number: u8) -> Option<String> {
        let name = match self {
            Self::LlamaGuard3 | Self::LlamaGuard4 => return Some(format!("S{number}")),
            Self::ShieldGemma => return None,
            Self::Qwen3Guard => match number {
                1 | 9 => "Violent",
                2 => "Non-violent Illegal Acts",
                3 | 4 | 12 => "Sexual Content or Sexual Acts",
                7 => "PII",
                8 => "Copyright Violation",
                11 => "Suicide & Self-Harm",
                13 => "Politically Sensitive Topics",
                _ => "Unethical Acts",
            },
        };
        Some(name.to_owned())
    }
}
