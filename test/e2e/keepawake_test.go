//go:build system

package e2e

import (
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testKeepAwake asks from inside a guest to keep it awake.
func testKeepAwake(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	for _, c := range []struct{ line, want string }{
		{"hatch-agent keep-awake", "not kept awake"},
		{"hatch-agent keep-awake 10m", "kept awake for 10m0s"},
		{"hatch-agent keep-awake 25h 2>&1 || true", `hatch-agent: the duration is "25h"; it must be from 0 to 24h0m0s, such as 90s, 10m or 1h30m`},
		{"hatch-agent keep-awake 0", "not kept awake"},
		{"rm -f /run/hatch/hatch-agent 2>/dev/null || echo refused", "refused"},
	} {
		if got := w.inside(t, v, c.line); got != c.want {
			t.Errorf("%s: %q, want %q", c.line, got, c.want)
		}
	}
	r, err := w.client.RunExec(t.Context(), v.ID, api.RunExec{User: "1234", Command: api.Command{Argv: []string{"hatch-agent", "keep-awake", "2h"}}})
	if err != nil || strings.TrimSpace(r.Stdout) != "kept awake for 2h0m0s" {
		t.Errorf("any user may ask: %+v, %v", r, err)
	}
}
