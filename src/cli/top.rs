//! `guestnet top`: guests by traffic, live. In: WatchNetworkStats. Out: a screen on a terminal, or with --once a list.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use connectrpc::ErrorCode;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table};
use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::output::{Format, fitting, pretty};
use crate::proto::guestnet::v1;

#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// What to sort by.
    #[arg(long, value_enum, default_value = "traffic")]
    sort: Sort,
    /// Print one list after one interval and end.
    #[arg(long)]
    once: bool,
    /// Milliseconds between two looks.
    #[arg(long, default_value_t = 1_000, value_name = "MS", value_parser = clap::value_parser!(u32).range(100..=60_000))]
    interval: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    Traffic,
    Packets,
    Drops,
    Queries,
    Name,
}

/// A guest's rates over the last interval.
#[derive(Debug, Clone, Default, PartialEq)]
struct Rates {
    vm_id: String,
    /// Bytes and packets a second, as the guest sees them.
    rx_bytes: f64,
    tx_bytes: f64,
    rx_packets: f64,
    tx_packets: f64,
    drops: f64,
    /// Questions to the resolver a second.
    queries: f64,
}

/// What is counted of a guest.
#[derive(Debug, Clone, Default)]
struct Totals {
    stats: v1::NetworkStats,
    queries: u64,
}

/// The totals of all guests.
async fn totals(client: &Client) -> Result<Vec<Totals>, CliError> {
    let stats = client.stats(v1::GetNetworkStatsRequest::default()).await?.stats;
    let resolvers = match client.dns_stats(None, Some(u32::MAX)).await {
        Ok(resolvers) => resolvers,
        // No network has a resolver.
        Err(CliError::Call(error)) if error.code == ErrorCode::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let guests = resolvers.into_iter().flat_map(|resolver| resolver.guests);
    let queries: HashMap<String, u64> = guests
        .map(|guest| (guest.vm_id, guest.counters.get("queries").copied().unwrap_or_default()))
        .collect();
    let of = |stats: v1::NetworkStats| Totals {
        queries: queries.get(&stats.vm_id).copied().unwrap_or_default(),
        stats,
    };
    Ok(stats.into_iter().map(of).collect())
}

/// The totals before, to tell rates from.
#[derive(Default)]
struct Before(HashMap<String, Totals>, Option<Instant>);

impl Before {
    /// Rates since the last call; empty at the first.
    fn rates(&mut self, totals: Vec<Totals>, now: Instant, sort: Sort) -> Vec<Rates> {
        let since = self.1.replace(now).map(|before| now.saturating_duration_since(before).as_secs_f64());
        let mut rates: Vec<Rates> = match since.filter(|seconds| *seconds > 0.0) {
            Some(seconds) => {
                totals.iter().map(|now| rate(self.0.get(&now.stats.vm_id), now, seconds)).collect()
            }
            None => Vec::new(),
        };
        self.0 = totals.into_iter().map(|totals| (totals.stats.vm_id.clone(), totals)).collect();
        rates.sort_by(|a, b| {
            let by = |rates: &Rates| match sort {
                Sort::Traffic => rates.rx_bytes + rates.tx_bytes,
                Sort::Packets => rates.rx_packets + rates.tx_packets,
                Sort::Drops => rates.drops,
                Sort::Queries => rates.queries,
                Sort::Name => 0.0,
            };
            by(b).total_cmp(&by(a)).then_with(|| a.vm_id.cmp(&b.vm_id))
        });
        rates
    }
}

#[allow(clippy::cast_precision_loss, reason = "rates for people")]
fn rate(before: Option<&Totals>, now: &Totals, seconds: f64) -> Rates {
    let none = Totals::default();
    // A VM that is new has sent since its start.
    let before = before.unwrap_or(&none);
    let queries = now.queries.saturating_sub(before.queries) as f64 / seconds;
    let (now, before) = (&now.stats, &before.stats);
    let of = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    Rates {
        vm_id: now.vm_id.clone(),
        rx_bytes: of(now.rx_bytes, before.rx_bytes),
        tx_bytes: of(now.tx_bytes, before.tx_bytes),
        rx_packets: of(now.rx_packets, before.rx_packets),
        tx_packets: of(now.tx_packets, before.tx_packets),
        drops: of(now.rx_dropped + now.tx_dropped, before.rx_dropped + before.tx_dropped),
        queries,
    }
}

pub(super) async fn run(client: &Client, format: Format, asked: TopArguments) -> Result<Vec<u8>, CliError> {
    let pause = Duration::from_millis(asked.interval.into());
    let mut before = Before::default();
    before.rates(totals(client).await?, Instant::now(), asked.sort);
    if asked.once || !io::stdout().is_terminal() {
        tokio::time::sleep(pause).await;
        let rates = before.rates(totals(client).await?, Instant::now(), asked.sort);
        return Ok(match format {
            Format::Json => pretty(&Value::Array(rates.iter().map(to_json).collect())),
            Format::Table => plain(&rates),
        }
        .into_bytes());
    }
    let failed = |source| CliError::Io { what: "drawing on the terminal".into(), source };
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let shown = screen(client, &mut terminal, asked.sort, pause, before).await;
    ratatui::restore();
    shown.map(|()| Vec::new())
}

/// For the service to tell all; keys are not heard meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

async fn look(client: &Client) -> Result<(Vec<Totals>, v1::GetStatusResponse), CliError> {
    Ok((totals(client).await?, client.status().await?))
}

async fn screen(
    client: &Client,
    terminal: &mut ratatui::DefaultTerminal,
    mut sort: Sort,
    pause: Duration,
    mut before: Before,
) -> Result<(), CliError> {
    let failed = |source| CliError::Io { what: "drawing on the terminal".into(), source };
    let (mut rates, mut status) = (Vec::new(), v1::GetStatusResponse::default());
    loop {
        // The service may be restarted: what was seen last stays, and it goes on.
        let missing = match tokio::time::timeout(PATIENCE, look(client)).await {
            Ok(Ok((totals, now))) => {
                status = now;
                rates = before.rates(totals, Instant::now(), sort);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer: journalctl -u guestnet".to_owned()),
        };
        terminal.draw(|frame| draw(frame, &rates, &status, sort, missing)).map_err(failed)?;
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let key = tokio::task::spawn_blocking(move || -> io::Result<Option<Event>> {
                if event::poll(left)? { event::read().map(Some) } else { Ok(None) }
            });
            let key = key.await.map_err(io::Error::other).and_then(|key| key).map_err(failed)?;
            match key {
                Some(Event::Key(key)) => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char('t') => sort = Sort::Traffic,
                    KeyCode::Char('p') => sort = Sort::Packets,
                    KeyCode::Char('d') => sort = Sort::Drops,
                    KeyCode::Char('u') => sort = Sort::Queries,
                    KeyCode::Char('n') => sort = Sort::Name,
                    _ => continue,
                },
                Some(Event::Resize(..)) => {}
                _ => continue,
            }
            break;
        }
    }
}

const COLUMNS: [&str; 7] = ["VM_ID", "RX", "TX", "RX_PKT/S", "TX_PKT/S", "DROPS/S", "QUERY/S"];

fn cells(rates: &Rates) -> [String; 7] {
    let count = |number: f64| format!("{number:.0}");
    [
        rates.vm_id.clone(),
        bits(rates.rx_bytes),
        bits(rates.tx_bytes),
        count(rates.rx_packets),
        count(rates.tx_packets),
        count(rates.drops),
        count(rates.queries),
    ]
}

/// `missing`: why there is nothing newer.
fn draw(
    frame: &mut Frame<'_>,
    rates: &[Rates],
    status: &v1::GetStatusResponse,
    sort: Sort,
    missing: Option<String>,
) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    let total = |of: fn(&Rates) -> f64| rates.iter().map(of).sum::<f64>();
    let queries: u64 = status.networks.iter().filter_map(|n| n.dns.as_option()).map(|dns| dns.queries).sum();
    let bound: u32 = status.networks.iter().map(|network| network.leases_bound).sum();
    let line = format!(
        "guestnet {}: {} VMs, {bound} leases; rx {}, tx {}, drops {:.0}/s; {queries} DNS queries so far",
        status.version,
        rates.len(),
        bits(total(|r| r.rx_bytes)),
        bits(total(|r| r.tx_bytes)),
        total(|r| r.drops)
    );
    let lines: Vec<Line<'_>> = std::iter::once(line).chain(missing).map(Line::from).collect();
    frame.render_widget(Text::from(lines), head);
    let bold = Style::new().add_modifier(Modifier::REVERSED);
    let header = Row::new(COLUMNS.map(Cell::from)).style(bold);
    let rows = rates.iter().map(|rates| Row::new(cells(rates).map(Cell::from)));
    let widths = [Constraint::Min(12), Constraint::Length(13), Constraint::Length(13)]
        .into_iter()
        .chain([Constraint::Length(9); 4]);
    frame.render_widget(Table::new(rows, widths).header(header), body);
    let keys = format!("sorted by {sort:?}: t traffic, p packets, d drops, u queries, n name; q ends");
    frame.render_widget(Line::from(keys.to_lowercase()), foot);
}

fn plain(rates: &[Rates]) -> String {
    let header = COLUMNS.map(str::to_owned).to_vec();
    let rows = rates.iter().map(|rates| cells(rates).to_vec());
    fitting(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

fn to_json(rates: &Rates) -> Value {
    json!({
        "vm_id": rates.vm_id,
        "rx_bytes_per_second": rates.rx_bytes,
        "tx_bytes_per_second": rates.tx_bytes,
        "rx_packets_per_second": rates.rx_packets,
        "tx_packets_per_second": rates.tx_packets,
        "drops_per_second": rates.drops,
        "queries_per_second": rates.queries,
    })
}

/// Bits, as links are sold.
fn bits(bytes: f64) -> String {
    let bits = bytes * 8.0;
    match bits {
        ..1e3 => format!("{bits:.0} bit/s"),
        1e3..1e6 => format!("{:.1} kbit/s", bits / 1e3),
        1e6..1e9 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.2} Gbit/s", bits / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(vm_id: &str, rx_bytes: u64, rx_dropped: u64) -> Totals {
        let stats = v1::NetworkStats { vm_id: vm_id.into(), rx_bytes, rx_dropped, ..Default::default() };
        Totals { stats, queries: rx_bytes / 2 }
    }

    #[test]
    fn rates_are_of_the_last_interval_and_sorted_as_asked() {
        let (mut before, start) = (Before::default(), Instant::now());
        assert_eq!(before.rates(vec![stats("a", 0, 0), stats("b", 0, 0)], start, Sort::Traffic), []);
        let later = start + Duration::from_secs(2);
        let rates = before.rates(vec![stats("a", 100, 8), stats("b", 4_000, 0)], later, Sort::Traffic);
        assert_eq!((rates[0].vm_id.as_str(), rates[0].rx_bytes, rates[1].drops), ("b", 2_000.0, 4.0));
        assert_eq!((rates[0].queries, rates[1].queries), (1_000.0, 25.0));
        assert!(plain(&rates).lines().all(|line| line.len() <= 80), "{}", plain(&rates));
        let later = later + Duration::from_secs(1);
        let rates = before.rates(vec![stats("a", 100, 9), stats("b", 4_000, 0)], later, Sort::Drops);
        assert_eq!((rates[0].vm_id.as_str(), rates[0].rx_bytes, rates[0].drops), ("a", 0.0, 1.0));
        assert_eq!(plain(&rates).lines().count(), 3);
    }

    #[test]
    fn traffic_is_said_in_bits() {
        assert_eq!(
            [0.0, 200.0, 2e6, 2e9].map(bits),
            ["0 bit/s", "1.6 kbit/s", "16.0 Mbit/s", "16.00 Gbit/s"]
        );
    }
}
