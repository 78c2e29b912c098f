//go:build linux && system

package owned

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAnotherUsersDirectory gives the directory, or one above it, to another user.
func TestAnotherUsersDirectory(t *testing.T) {
	for name, whose := range map[string]func(above, dir string) string{
		"the directory": func(_, dir string) string { return dir },
		"one above":     func(above, _ string) string { return above },
		"a link in it": func(above, dir string) string {
			linkIn(t, above, dir, 0o700)
			return filepath.Join(dir, "vms")
		},
		"what a link in it leads to": func(above, dir string) string {
			linkIn(t, above, dir, 0o700)
			return filepath.Join(above, "target")
		},
		"its link": func(above, dir string) string {
			moveBehindLink(t, above, dir, 0o700)
			return dir
		},
	} {
		above, dir := nested(t)
		chmod(t, above, 0o777|os.ModeSticky)
		path := whose(above, dir)
		if err := Check(dir, false); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		if err := os.Lchown(path, 65534, 65534); err != nil {
			t.Fatalf("run this as root: %v", err)
		}
		err := Check(dir, false)
		if err == nil || !strings.Contains(err.Error(), "belongs to user 65534") || !strings.Contains(err.Error(), "chown -h 0 "+filepath.Clean(path)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
