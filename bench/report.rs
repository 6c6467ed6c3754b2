//! What a benchmark found, as a table for people and as the one line that programs read.

use std::fmt;

use serde_json::{Map, Value, json};

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// One figure: ours, each peer's from the same run, and what we aim at.
#[derive(Debug, Clone)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub better: Better,
    pub guestnet: f64,
    /// NaN, which is `null` in JSON, for what a peer cannot do.
    pub peers: Vec<(&'static str, f64)>,
    /// Why not, of each such peer.
    pub absent: Vec<(&'static str, String)>,
    pub goal: f64,
}

#[derive(Debug, Clone, Default)]
pub struct Report(pub Vec<Figure>);

impl Figure {
    /// How many times better ours is than each peer's: above 1 ours is the better one. NaN where one has none.
    fn ratios(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.peers.iter().map(|(peer, number)| match self.better {
            Better::Lower => (*peer, number / self.guestnet),
            Better::Higher => (*peer, self.guestnet / number),
        })
    }
}

impl Report {
    pub fn json(&self, bench: &str) -> Value {
        let rounded = |number: f64| json!((number * 1000.0).round() / 1000.0);
        let figure = |figure: &Figure| {
            let named = |(peer, number): (&str, f64)| (peer.to_owned(), rounded(number));
            let mut object = json!({
                "name": figure.name,
                "unit": figure.unit,
                "better": match figure.better { Better::Lower => "lower", Better::Higher => "higher" },
                "guestnet": rounded(figure.guestnet),
                "peers": figure.peers.iter().copied().map(named).collect::<Map<String, Value>>(),
                "ratios": figure.ratios().map(named).collect::<Map<String, Value>>(),
                "goal": rounded(figure.goal),
            });
            if !figure.absent.is_empty() {
                object["absent"] =
                    figure.absent.iter().map(|(peer, why)| ((*peer).to_owned(), json!(why))).collect();
            }
            object
        };
        json!({ "bench": bench, "results": self.0.iter().map(figure).collect::<Vec<Value>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Figure { name, unit, better, guestnet, peers, goal, absent } in &self.0 {
            let bound = match better {
                Better::Lower => "at most",
                Better::Higher => "at least",
            };
            write!(f, "{name:<32} {guestnet:>12.3} {unit:<8} goal: {bound} {goal}")?;
            for (peer, number) in peers {
                write!(f, "   {peer} {number:.3}")?;
            }
            writeln!(f)?;
            for (peer, why) in absent {
                writeln!(f, "{:<32} {peer}: {why}", "")?;
            }
        }
        Ok(())
    }
}
