# make setup | check | test | test-lab | demo | screenshots | bench | libvirt | mutants | dashboards | wheel | deb | lab | lock | clean
# On Debian 12 with git, make, python3 >= 3.11 and root.
# What has been done is remembered by stamp files under .venv and build; `make clean` forgets it.

PYTHON ?= python3
# Where units/demo expects its kernel and keeps its disk.
DEMO_DIR = /var/cache/vmhost/demo
BIN = .venv/bin
# Whatever the environment says: an agent that compiles all its modules takes half as long again to start, in each test.
unexport PYTHONDONTWRITEBYTECODE
GUEST = build/guest
GUEST_SOURCES = $(addprefix tests/guest/,build.sh init inittab send-frames.c) $(wildcard tests/guest/bin/*)
PYTEST_ARGS ?=

# command:package, or /path:package; a package is installed only where that is missing.
TOOLS = qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils busybox:busybox-static ip:iproute2 nft:nftables dnsmasq:dnsmasq-base haproxy:haproxy iptables-nft:iptables cpio:cpio \
	gcc:gcc /usr/include/stdio.h:libc6-dev \
	unshare:util-linux ps:procps git:git dpkg-deb:dpkg /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf \
	strace:strace mmdebstrap:mmdebstrap systemd-nspawn:systemd-container man:man-db lintian:lintian chromium:chromium \
	prometheus:prometheus promtool:prometheus dhclient:isc-dhcp-client dhcpcd:dhcpcd-base

.DELETE_ON_ERROR:
.PHONY: setup tools venv guest demo-files check test test-lab demo screenshots bench libvirt hunt mutants dashboards wheel deb lab lock clean

setup: tools venv guest

tools: build/tools.stamp
venv: .venv/stamp
guest: $(GUEST)/initramfs.img

build/tools.stamp: Makefile
	@mkdir -p build
	@missing=""; \
	for tool in $(TOOLS); do \
		command -v "$${tool%%:*}" >/dev/null || [ -f "$${tool%%:*}" ] || missing="$$missing $${tool#*:}"; \
	done; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
		echo "setup: installing$$missing"; \
		DEBIAN_FRONTEND=noninteractive apt-get -q update && \
		DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $$missing || exit 1; \
	fi
	@touch $@

.venv/locked.stamp: requirements.lock | build/tools.stamp
	@echo "setup: making .venv from requirements.lock"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vmhost needs Python 3.11 or newer")'
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

.venv/stamp: .venv/locked.stamp pyproject.toml
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(GUEST)/initramfs.img: $(GUEST_SOURCES) | build/tools.stamp
	@sh tests/guest/build.sh $(GUEST)

# QEMU runs as a user of its own: the kernel must lie where everyone may read it.
demo-files: guest
	@install -d -m 755 $(DEMO_DIR)
	@install -m 644 $(GUEST)/vmlinuz $(GUEST)/initramfs.img $(DEMO_DIR)/

check: venv build/lock.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/check_lock.py installed

# Asks the package index, so only when one of the two has changed.
build/lock.stamp: pyproject.toml requirements.lock .ci/check_lock.py | .venv/stamp
	@echo "check: resolving pyproject.toml again with the versions of requirements.lock"
	@$(BIN)/python .ci/check_lock.py current
	@touch $@

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
WHEEL = build/dist/vmhost-$(VERSION)-py3-none-any.whl
DEB = build/vmhost_$(VERSION)_$(shell dpkg --print-architecture).deb
PACKAGED = pyproject.toml LICENSE $(shell find agent -name '*.py' -o -name '*.css' -o -name '*.js')

# The same checkout gives the same bytes: files have the time of its last commit.
$(WHEEL) $(DEB): export SOURCE_DATE_EPOCH = $(or $(shell git log -1 --format=%ct 2>/dev/null),0)
wheel: $(WHEEL)
deb: $(DEB)

# setuptools keeps what was deleted meanwhile in its own build folder, so it has none here.
$(WHEEL): $(PACKAGED) | .venv/stamp
	@rm -rf build/wheel && mkdir -p build/wheel build/dist && cp -r pyproject.toml LICENSE agent build/wheel/
	@find build/wheel -name __pycache__ -prune -exec rm -rf {} +
	@$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w build/dist build/wheel
	@rm -rf build/wheel
	@echo "$@"

$(DEB): $(WHEEL) requirements.lock CHANGELOG.md $(shell find debian systemd units docs dashboards -type f -not -name '*.pyc') | .venv/stamp
	@$(BIN)/python -m debian.build $(WHEEL) $(VERSION) $(DEB)
	@echo "$@"

# Kept outside of the checkout: ~/.cache/vmhost-lab, or VMHOST_LAB_CACHE.
lab: setup
	@$(BIN)/python -m tests.lab.tree
	@$(BIN)/python -m tests.lab.image

test: setup deb lab
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Only what runs in the virtual lab, which `test` runs as well; also where this kernel has what those tests need.
test-lab: setup deb lab
	$(BIN)/python -m pytest -m virtual --in-lab $(PYTEST_ARGS)

# KEEP=1 leaves it running and says how to look around and how to end it.
demo: setup demo-files
	@$(BIN)/python -m tests.demo $(if $(KEEP),--keep)

# Of the status page, in Chromium: docs/images.
screenshots: setup
	@$(BIN)/python -m tests.screenshots

# Some minutes on a machine that does nothing else; BENCH="plan tap-out" runs only these. The table as JSON: build/bench.json.
bench: setup
	@$(BIN)/python -m bench $(BENCH)

# What `make bench` compares a scrape with: libvirt's packages and what they need that is not installed here. They are only
# downloaded, and unpacked by the bench into a root in memory (bench/libvirt_root.sh): nothing is installed, no service starts.
LIBVIRT = libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients prometheus-libvirt-exporter
libvirt: build/libvirt.stamp
build/libvirt.stamp: | build/tools.stamp
	@rm -rf build/libvirt && mkdir -p build/libvirt/partial
	@download() { \
		apt-get -q -y install --download-only --no-install-recommends -o APT::Sandbox::User=root -o Debug::NoLocking=1 \
			-o Dir::Cache::archives=$(CURDIR)/build/libvirt $(LIBVIRT); \
	}; \
	download || { apt-get -q update && download; }
	@touch $@

# Property tests with other examples each time, round by round; one that fails is kept in .hypothesis and tried first.
hunt: venv
	@for round in $$(seq $(or $(ROUNDS),20)); do \
		echo "hunt: round $$round of $(or $(ROUNDS),20)"; \
		$(BIN)/python -m pytest -q --hypothesis-profile=hunt tests/property || exit 1; \
	done

# How many ways to break the planner the tests notice; some minutes. MUTANTS="policy" breaks only that module.
mutants: venv
	@$(BIN)/python -m tests.mutation --json build/mutants.json $(MUTANTS)

# What Grafana and Prometheus read, from the code beside it; a test says when it is stale.
dashboards: venv
	@$(BIN)/python -m dashboards

# Newest versions of everything, hashes of the official files. Takes about two minutes.
lock: venv
	@echo "lock: resolving and hashing every distribution"
	@$(BIN)/python .ci/check_lock.py upgrade

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
