//! Measures and traces through coracle:observe, prints what came of it, and stays until it is ended.

use coracle_sdk::observe::{Histogram, Span, metrics};

fn main() {
    let kind = |value: &str| ("kind".to_owned(), value.to_owned());
    for (name, value) in [("book", 2), ("book", 3), ("pen", 1)] {
        println!("{:?}", metrics::add("orders_total", &[kind(name)], value));
    }
    println!("{:?}", metrics::set("queue_depth", &[], 9));
    println!("{:?}", metrics::set("queue_depth", &[], 7));
    println!("{:?}", metrics::set("queue depth", &[], 7));
    println!("{:?}", metrics::set_number("load", &[], 0.25));
    let took = Histogram::new("took_seconds", &[0.1, 1.0]);
    println!("{:?}", took.as_ref().map(|_| ()));
    for seconds in [0.05, 0.5, 20.25] {
        println!("{:?}", took.as_ref().map(|took| took.observe(&[("kind", "book")], seconds)));
    }
    {
        let order = Span::new("order", None);
        order.set("customer", "ann");
        let payment = Span::new("payment", Some(&order.traceparent()));
        payment.event("declined");
        payment.fail("no money");
        println!("{}", payment.traceparent());
    }
    loop {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}
