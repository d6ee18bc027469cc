//! Writes the kept inputs of all targets anew: `cargo run -p targets`, to `fuzz/corpus`. Inputs that a fuzzer found
//! stay; those from encoders are named `seed-N`.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for target in targets::TARGETS {
        let dir = root.join(target.name);
        fs::create_dir_all(&dir)?;
        for (number, input) in (target.corpus)().iter().enumerate() {
            (target.run)(input);
            fs::write(dir.join(format!("seed-{number:02}")), input)?;
        }
    }
    Ok(())
}
