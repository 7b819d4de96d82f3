//! A command that pretends to train a model: it fits a line to points, tells its loss, and ends. Its first argument is ignored, as a
//! script's name would be.

fn main() {
    let points: Vec<(f64, f64)> =
        (0..20).map(|n| (f64::from(n) / 20.0, 3.0 * f64::from(n) / 20.0 + 1.0)).collect();
    let (mut slope, mut offset) = (0.0, 0.0);
    for epoch in 1..=500 {
        let (mut by_slope, mut by_offset, mut loss) = (0.0, 0.0, 0.0);
        for (x, y) in &points {
            let error = slope * x + offset - y;
            by_slope += error * x;
            by_offset += error;
            loss += error * error;
        }
        slope -= 0.05 * by_slope;
        offset -= 0.05 * by_offset;
        if epoch % 100 == 0 {
            println!("epoch {epoch} loss {:.6}", loss / 20.0);
        }
    }
    println!("trained: y = {slope:.2} x + {offset:.2}");
}
