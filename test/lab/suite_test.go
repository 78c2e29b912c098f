//go:build lab

package lab

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"
)

// suiteTests are patterns of the suite's tests; spaces part them.
var suiteTests = flag.String("suite", "TestMinimalGuests TestSnapshots TestRealGuests", "tests of test/e2e that TestSuite runs")

// TestSuite runs test/e2e on the host, with Linux guests on Firecracker. Its output comes
// as it is printed: a run that is ended tells how far it came.
func TestSuite(t *testing.T) {
	if testing.Short() {
		t.Skip("the suite takes an hour where hosts are emulated; make test-lab runs it")
	}
	w := newWorld(t, Debian12, "xfs", "minimal", "debian")
	w.run(t, "systemctl stop hatchd")
	w.run(t, "cp --archive /media/cargo/hatch /srv/ && mkdir -p /srv/hatch/.cache/e2e && cp --archive /media/cargo/images /srv/hatch/.cache/e2e/")
	for name := range strings.FieldsSeq(*suiteTests) {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			err := w.host.Stream(t.Context(), "cd /srv/hatch/test/e2e && HATCH_TEST_VMM=firecracker ./e2e.test -test.v -test.timeout 3h -test.run '"+name+"'", nil, os.Stdout)
			took(t, name, began)
			if err != nil {
				t.Error(err)
			}
		})
	}
}
