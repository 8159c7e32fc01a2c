# Shortens what tests print with -v: what failed in full, how many were skipped and why.
#
# Under CI a skip is a failure. With machine=1, the input is what a machine of .ci/kernels printed: there, tests
# may be skipped because "the kernel lacks" something, and the last line is "end".
function flush(name) { printf "%s", out[name]; delete out[name] }

{ sub(/\r$/, "") } # of a serial line

/^=== (RUN|PAUSE|CONT|NAME) / { test = $3; next }
/^(PASS|FAIL)$/ { test = ""; next }

# Of all that a test said, the last line with a position is why it was skipped.
/^ *--- SKIP: / { skipped++; why[reason[$3]]++; delete out[$3]; next }
/^ *--- PASS: / { passed++; delete out[$3]; next }
/^ *--- FAIL: / { failed++; flush($3); print; next }
test != "" && !/^(ok  |FAIL|\?   )\t/ {
	out[test] = out[test] $0 "\n"
	if (sub(/^ +[^ ]+\.go:[0-9]+: /, "")) reason[test] = $0
	next
}

machine && /^testing: warning: no tests to run$/ { failed++ }
machine && /^(ok  |FAIL)\t/ { # one that failed without a test that did, has failed as a whole
	if (/^FAIL/ && failed == before) failed++
	before = failed
}
machine && /^end$/ { ended = 1; next }

# What was not about a test. A package that ended amid one, by a panic, says so here.
{ for (name in out) flush(name); test = ""; print; fflush() }

END {
	for (name in out) flush(name)
	if (machine && !ended) {
		print "the machine did not end its tests"
		failed++
	}
	if (machine && !passed) failed++ # it ran none
	for (r in why) {
		printf "skipped %d: %s\n", why[r], r
		if (!machine || r ~ /^the kernel lacks /) continue
		failed += why[r]
		skipped -= why[r]
	}
	printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
	exit machine ? failed > 0 : skipped && ENVIRON["CI"] != ""
}
