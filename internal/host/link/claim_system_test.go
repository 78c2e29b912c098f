//go:build system

package link

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/nettest"
)

func TestOneHatchdPerHost(t *testing.T) {
	dir := t.TempDir()
	first, err := ClaimHost(dir, "/var/lib/first")
	if err != nil {
		t.Fatal(err)
	}
	_, err = ClaimHost(dir, "/var/lib/second")
	if !errs.HasCode(err, "host_in_use") {
		t.Fatalf("got %v, want host_in_use", err)
	}
	if holder := fmt.Sprintf("process %d, data directory %q", os.Getpid(), "/var/lib/first"); !strings.Contains(err.Error(), holder) {
		t.Errorf("got %q, want one that names %s", err, holder)
	}
	nettest.NewNamespace(t).Do(t, func() error { // another host, as it were
		elsewhere, err := ClaimHost(dir, "/var/lib/second")
		if err != nil {
			return err
		}
		return elsewhere.Close()
	})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := ClaimHost(dir, "/var/lib/second")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A hatchd that was killed leaves its file, but no claim.
func TestAClaimEndsWithItsProcess(t *testing.T) {
	const inChild = "HATCH_TEST_CLAIM"
	if dir := os.Getenv(inChild); dir != "" {
		if _, err := ClaimHost(dir, "/var/lib/killed"); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(os.Stdout, "\nclaimed")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until it is killed
		return
	}
	dir := t.TempDir()
	child := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), inChild+"="+dir)
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "claimed" {
	}
	if _, err := ClaimHost(dir, "/var/lib/next"); !errs.HasCode(err, "host_in_use") {
		t.Errorf("while it lives: %v, want host_in_use", err)
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	next, err := ClaimHost(dir, "/var/lib/next")
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

func TestManyClaimAtOnce(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	var mu sync.Mutex
	held := 0
	for range 20 {
		all.Go(func() {
			c, err := ClaimHost(dir, "/var/lib/hatch")
			if err != nil {
				return // another one held it for too long
			}
			mu.Lock()
			held++
			if held > 1 {
				t.Error("two hold it at once")
			}
			mu.Unlock()
			mu.Lock()
			held--
			mu.Unlock()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
