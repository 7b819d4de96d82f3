//! A worker of a training job: fits a line to its share of noisy points by gradient descent.
//!
//! `RANK` and `WORLD_SIZE` say which share is its own; `EPOCHS` how long it trains.

fn main() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (rank, size, epochs) = (number("RANK", 0), number("WORLD_SIZE", 1), number("EPOCHS", 200));
    // y = 3x + 2 with noise; a multiplicative generator, so that every run is the same.
    let mut seed = 88_172_645_463_325_252_u64.wrapping_add(rank);
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as f64 / (1_u64 << 53) as f64
    };
    let points: Vec<(f64, f64)> = (0..1000)
        .map(|_| {
            let x = random() * 2.0 - 1.0;
            (x, 3.0 * x + 2.0 + (random() - 0.5) * 0.1)
        })
        .collect();
    let (mut w, mut b) = (0.0, 0.0);
    let mut loss = f64::MAX;
    for epoch in 1..=epochs {
        let (mut dw, mut db) = (0.0, 0.0);
        loss = 0.0;
        for (x, y) in &points {
            let error = w * x + b - y;
            loss += error * error;
            dw += error * x;
            db += error;
        }
        let n = points.len() as f64;
        (w, b, loss) = (w - 0.5 * dw / n, b - 0.5 * db / n, loss / n);
        if epoch % 50 == 0 {
            println!("rank {rank} of {size}: epoch {epoch}: loss {loss:.5}");
        }
    }
    println!("rank {rank} of {size}: y = {w:.2}x + {b:.2}, loss {loss:.5}");
    if loss > 0.01 {
        eprintln!("rank {rank}: did not converge");
        std::process::exit(1);
    }
}
