//! Real clients on the real binary. Each test says its profile.

mod auth;
mod bad_input;
mod capabilities;
mod clients;
mod cluster;
mod custom_resources;
mod faults;
mod hello;
mod infer;
mod isolated;
mod kube_rs;
mod languages;
mod linux;
mod network;
mod node;
mod nodes;
mod objects;
mod pods;
mod readme;
mod routed;
mod serverless;
mod streams;
mod ui;
mod workloads;
