//! Replays the committed corpus and the same inputs with every byte position mutated once, on stable.

use std::fs;
use std::path::Path;

#[test]
fn every_target_survives_its_corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    assert!(!weft_fuzz::TARGETS.is_empty(), "no fuzz target is registered");
    for (name, target) in weft_fuzz::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(root.join(name)).unwrap_or_else(|e| panic!("corpus/{name}: {e}")) {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            target(&bytes);
            for position in 0..bytes.len().min(256) {
                for flip in [0x01, 0x80, 0xff] {
                    let mut mutated = bytes.clone();
                    mutated[position] ^= flip;
                    target(&mutated);
                }
                target(&bytes[..position]);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "corpus/{name} is empty");
    }
}
