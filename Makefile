# Every action by name; the work is in scripts/. `make` alone lists them.

PREFIX ?= /usr/local
ARGS ?=

.PHONY: help demo bench test build check unit lab fuzz-replay bench-smoke install

help: ## List the actions
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-20s %s\n", $$1, $$2 }'

demo: ## Install what is missing, build, and show two hosts talking through weft (root; ARGS="--json" passes flags on)
	@scripts/demo $(ARGS)

bench: ## Build, and measure weft beside kernel VXLAN (root; ARGS="--quick" and others: `weft-bench run --help`)
	@scripts/bench $(ARGS)

test: ## Install what is missing and run everything that CI runs (without root all but the lab tests)
	@scripts/prerequisites tests
	@scripts/test

build: ## Build weft and weftd into target/release
	@scripts/prerequisites
	@bash -c '. scripts/common.sh && cargo build --release --locked'

check: ## Formatting, clippy and rustdoc, warnings denied
	@scripts/test fmt clippy doc

unit: ## Unit and property tests, fuzz replay: all that needs no root
	@scripts/test unit

lab: ## Lab tests: real devices in network namespaces (root; ARGS="NAME" picks by name)
	@scripts/test build lab -- $(ARGS)

fuzz-replay: ## Fuzz targets over their committed corpus
	@scripts/test fuzz

bench-smoke: ## Every micro bench once, without measuring
	@scripts/test benches

install: build ## Install weft, weftd, completions and the systemd unit below PREFIX=/usr/local
	@scripts/install "$(PREFIX)"
