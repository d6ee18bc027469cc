//! `ringmq-bench compare LINES [SVG]`: the medians of several rounds as a Markdown table and a picture. A
//! line is a server's name and a JSON line of the short form; `bench/compare` writes them.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Most bytes of lines that are read: 16 MiB.
const BYTES_MAX: usize = 16 << 20;
/// The order of servers in tables and pictures, as far as they are there; others follow by name.
const ORDER: [&str; 5] = ["limit", "ringmq-sync", "ringmq-async", "java-sync", "java-async"];
/// Bars' colours, in that order, and then again.
const COLOURS: [&str; 6] = ["#9aa0a6", "#1a73e8", "#8ab4f8", "#d93025", "#f28b82", "#188038"];

/// What was loaded: send or pull, connections, outstanding on each.
type Point = (String, u64, u64);
/// What a line says of it.
type Figures = BTreeMap<&'static str, Vec<f64>>;

/// The fields of a line that are compared.
const FIELDS: [&str; 5] = ["per_s", "p50_ms", "p99_ms", "p999_ms", "server_cpu_us"];

/// All lines, by server and point.
#[derive(Debug, Default)]
pub struct Comparison {
    servers: Vec<String>,
    points: Vec<Point>,
    figures: BTreeMap<(String, Point), Figures>,
}

impl Comparison {
    /// Reads lines. Those without JSON (memory, notes) are left out. `Err` names the line.
    pub fn read(text: &str) -> Result<Comparison, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("{} bytes of lines are more than {BYTES_MAX}", text.len()));
        }
        let mut all = Comparison::default();
        for (index, line) in text.lines().enumerate() {
            let Some((server, json)) = line.split_once(' ').filter(|(_, json)| json.starts_with('{')) else { continue };
            let wrong = |what: &str| format!("line {}: {what}: {line}", index + 1);
            let value: Value = serde_json::from_str(json).map_err(|error| wrong(&error.to_string()))?;
            let number = |name: &str| value[name].as_u64().ok_or_else(|| wrong(&format!("no `{name}`")));
            let what = value["what"].as_str().unwrap_or("send").to_owned();
            let point = (what, number("conns")?, number("pipe")?);
            if !all.servers.iter().any(|known| known == server) {
                all.servers.push(server.to_owned());
            }
            if !all.points.contains(&point) {
                all.points.push(point.clone());
            }
            let figures = all.figures.entry((server.to_owned(), point)).or_default();
            for field in FIELDS {
                figures.entry(field).or_default().extend(value[field].as_f64());
            }
        }
        if all.points.is_empty() {
            return Err("there is no line with figures".to_owned());
        }
        let place = |name: &String| (ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()), name.clone());
        all.servers.sort_by_key(place);
        Ok(all)
    }

    /// The tables: rates with ratios, latencies, CPU time.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let rounds = self.figures.values().map(|figures| figures["per_s"].len()).max().unwrap_or(0);
        let _ = writeln!(
            out,
            "Messages a second; {}.\n",
            if rounds == 1 { "one round".to_owned() } else { format!("medians of {rounds} rounds") }
        );
        let ratios = [
            ("ringmq-sync", "limit", "of the limit"),
            ("ringmq-sync", "java-sync", "to Java, sync"),
            ("ringmq-async", "java-async", "to Java, async"),
        ];
        let ratios: Vec<_> = ratios.iter().filter(|(a, b, _)| self.has(a) && self.has(b)).collect();
        let mut head: Vec<String> = self.servers.clone();
        head.extend(ratios.iter().map(|(_, _, name)| (*name).to_owned()));
        self.table(&mut out, &head, |point| {
            let rates = self.servers.iter().map(|server| self.median(server, point, "per_s"));
            let mut cells: Vec<String> = rates.map(|rate| shown(rate, grouped)).collect();
            cells.extend(ratios.iter().map(|(a, b, _)| {
                let both = self.median(a, point, "per_s").zip(self.median(b, point, "per_s"));
                let is_limit = *b == "limit";
                shown(both, |(a, b)| if is_limit { percent(a / b) } else { format!("{:.2} x", a / b) })
            }));
            cells
        });
        for (title, fields, digits) in [
            ("Latency, ms: p50, p99, p99.9.", &["p50_ms", "p99_ms", "p999_ms"][..], 3),
            ("The server's CPU time for each message, µs.", &["server_cpu_us"][..], 2),
        ] {
            let _ = writeln!(out, "\n{title}\n");
            self.table(&mut out, &self.servers, |point| {
                let cell = |server: &String| {
                    let values: Option<Vec<_>> = fields.iter().map(|field| self.median(server, point, field)).collect();
                    let text = |value: &f64| format!("{value:.digits$}");
                    shown(values, |values| values.iter().map(text).collect::<Vec<_>>().join(", "))
                };
                self.servers.iter().map(cell).collect()
            });
        }
        out
    }

    /// The picture: rates above, median and p99 latencies below, on logarithmic scales.
    pub fn svg(&self) -> String {
        const WIDTH: f64 = 960.0;
        const PANEL: f64 = 300.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            2.0 * PANEL + 90.0
        );
        for (index, server) in self.servers.iter().enumerate() {
            let x = 70.0 + 150.0 * index as f64;
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"22\">{}</text>",
                colour(index),
                x + 18.0,
                escaped(server)
            );
        }
        self.panel(&mut out, 50.0, PANEL, WIDTH, "messages a second", &["per_s"]);
        self.panel(&mut out, 90.0 + PANEL, PANEL, WIDTH, "ms: p50, and p99 pale", &["p99_ms", "p50_ms"]);
        out.push_str("</svg>\n");
        out
    }

    /// Bars for every point and server; of several fields the later ones stand before the earlier.
    fn panel(&self, out: &mut String, top: f64, height: f64, width: f64, title: &str, fields: &[&'static str]) {
        let values = self.points.iter().flat_map(|point| {
            self.servers
                .iter()
                .flat_map(move |server| fields.iter().filter_map(move |field| self.median(server, point, field)))
        });
        let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
        let decade = |value: f64| value.log10();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if values.is_empty() {
            return;
        }
        let (low, high) = (decade(low).floor(), (decade(high).floor() + 1.0));
        let (left, bottom) = (70.0, top + height - 40.0);
        let y = |value: f64| bottom - (decade(value) - low) / (high - low) * (height - 60.0);
        let _ = writeln!(out, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>", top + 10.0);
        for step in low as i32..=high as i32 {
            let value = 10f64.powi(step);
            let label = if value >= 1.0 { crate::units::count(value).replace(".00", "") } else { value.to_string() };
            let _ = writeln!(
                out,
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                width - 20.0,
                left - 6.0,
                y(value) + 4.0,
                at = y(value)
            );
        }
        let group = (width - left - 20.0) / self.points.len() as f64;
        let bar = (group - 12.0) / self.servers.len() as f64;
        for (number, point) in self.points.iter().enumerate() {
            let start = left + group * number as f64 + 6.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                start + group / 2.0 - 6.0,
                bottom + 18.0,
                escaped(&name(point))
            );
            for (index, server) in self.servers.iter().enumerate() {
                for (layer, field) in fields.iter().enumerate() {
                    let Some(value) = self.median(server, point, field).filter(|value| *value > 0.0) else { continue };
                    let pale = if layer + 1 < fields.len() { " fill-opacity=\"0.35\"" } else { "" };
                    let _ = writeln!(
                        out,
                        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"{pale}>\
                         <title>{}, {}: {value:.3}</title></rect>",
                        start + bar * index as f64,
                        y(value),
                        (bar - 2.0).max(1.0),
                        bottom - y(value),
                        colour(index),
                        escaped(server),
                        escaped(&name(point))
                    );
                }
            }
        }
    }

    fn table(&self, out: &mut String, head: &[String], row: impl Fn(&Point) -> Vec<String>) {
        let _ = writeln!(out, "| load | {} |", head.join(" | "));
        let _ = writeln!(out, "| --- |{}", " --- |".repeat(head.len()));
        for point in &self.points {
            let _ = writeln!(out, "| {} | {} |", name(point), row(point).join(" | "));
        }
    }

    fn has(&self, server: &str) -> bool {
        self.servers.iter().any(|known| known == server)
    }

    fn median(&self, server: &str, point: &Point, field: &'static str) -> Option<f64> {
        median(self.figures.get(&(server.to_owned(), point.clone()))?.get(field)?)
    }
}

/// The middle value, or the mean of the middle two.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn name((what, connections, outstanding): &Point) -> String {
    format!("{what} {connections}x{outstanding}")
}

fn shown<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(String::new, text)
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).expect("digits")).collect();
    parts.join(",")
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
ringmq-sync {\"what\":\"send\",\"conns\":16,\"pipe\":32,\"per_s\":300000.0,\"p50_ms\":1.5,\"p99_ms\":3,\"p999_ms\":4,\"server_cpu_us\":2.5}
limit {\"conns\":16,\"pipe\":32,\"per_s\":800000,\"p50_ms\":0.5,\"p99_ms\":1,\"p999_ms\":2,\"server_cpu_us\":null}
ringmq-sync rss_kb 76000
ringmq-sync {\"what\":\"send\",\"conns\":16,\"pipe\":32,\"per_s\":500000.0,\"p50_ms\":1.7,\"p99_ms\":5,\"p999_ms\":6,\"server_cpu_us\":2.0}
java-sync {\"what\":\"send\",\"conns\":16,\"pipe\":32,\"per_s\":40000,\"p50_ms\":10,\"p99_ms\":20,\"p999_ms\":30,\"server_cpu_us\":42}
ringmq-sync {\"what\":\"pull\",\"conns\":8,\"pipe\":1,\"per_s\":1000000,\"p50_ms\":0.2,\"p99_ms\":0.5,\"p999_ms\":1,\"server_cpu_us\":0.9}
";

    #[test]
    fn tables_have_medians_and_ratios() {
        let expected = "\
Messages a second; medians of 2 rounds.

| load | limit | ringmq-sync | java-sync | of the limit | to Java, sync |
| --- | --- | --- | --- | --- | --- |
| send 16x32 | 800,000 | 400,000 | 40,000 | 50 % | 10.00 x |
| pull 8x1 |  | 1,000,000 |  |  |  |

Latency, ms: p50, p99, p99.9.

| load | limit | ringmq-sync | java-sync |
| --- | --- | --- | --- |
| send 16x32 | 0.500, 1.000, 2.000 | 1.600, 4.000, 5.000 | 10.000, 20.000, 30.000 |
| pull 8x1 |  | 0.200, 0.500, 1.000 |  |

The server's CPU time for each message, µs.

| load | limit | ringmq-sync | java-sync |
| --- | --- | --- | --- |
| send 16x32 |  | 2.25 | 42.00 |
| pull 8x1 |  | 0.90 |  |
";
        assert_eq!(Comparison::read(LINES).unwrap().markdown(), expected);
    }

    #[test]
    fn the_picture_has_a_bar_for_each_figure() {
        let svg = Comparison::read(LINES).unwrap().svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<title>").count(), 4 + 2 * 4, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn bad_lines_are_named() {
        assert!(Comparison::read("x {\"conns\":1}").unwrap_err().starts_with("line 1: no `pipe`"));
        assert!(Comparison::read("\nx {").unwrap_err().starts_with("line 2: "));
        assert!(Comparison::read("x rss_kb 1\n").unwrap_err().contains("no line"));
    }
}
