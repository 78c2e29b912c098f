package agent

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

const (
	// brokenYAML is what cloud-init says of "#cloud-config\npassword: geheim\nruncmd: [ls\n".
	brokenYAML = `Failed loading yaml blob. Invalid format at line 3 column 9: "while parsing a flow sequence
  in "<unicode string>", line 3, column 9:
    runcmd: [ls # geheim
            ^
expected ',' or ']', but got '<stream end>'
  in "<unicode string>", line 4, column 1:

    ^"`
	brokenYAMLError = "user data was not applied: its YAML cannot be read (Failed loading yaml blob. Invalid format at line 3 column 9: " +
		"while parsing a flow sequence (line 3, column 9); expected ',' or ']', but got '<stream end>' (line 4, column 1))"

	unknownHeader = `Unhandled non-multipart (text/x-not-multipart) userdata: 'b'password: geheim'...'`

	result = `{"v1":{"datasource":"NoCloud","errors":[]}}`
)

// record returns a record of cloud-init's log.
func record(level, text string) string {
	return "2026-11-30 20:00:00,123 - util.py[" + level + "]: " + text + "\n"
}

// TestWhatCloudInitOnlyWarnsAboutCounts has the files of cloud-init 22.4, which has a
// log, and of 23.4, whose status has the warnings.
func TestWhatCloudInitOnlyWarnsAboutCounts(t *testing.T) {
	start := record("DEBUG", "Cloud-init v. 22.4.2 running 'init-local' at Mon, 30 Nov 2026 20:00:00 +0000. Up 5.1 seconds.")
	for name, c := range map[string]struct {
		status, log string
		want        wire.CloudInit
	}{
		"no warnings": {"{}", start + record("DEBUG", brokenYAML), wire.CloudInit{Status: "done"}},
		"no files":    {"", "", wire.CloudInit{Status: "done"}},
		"bad YAML": {
			"{}", start + record("WARNING", brokenYAML) + record("WARNING", brokenYAML) + record("DEBUG", "more"),
			wire.CloudInit{Status: "error", Errors: []string{brokenYAMLError}},
		},
		"a header that is not known": {
			"{}", start + record("WARNING", unknownHeader),
			wire.CloudInit{Status: "error", Errors: []string{unreadForms[2].meaning + " (Unhandled non-multipart (text/x-not-multipart) userdata)"}},
		},
		"a warning": {
			"{}", start + record("WARNING", "Invalid cloud-config provided:\nusers.0: 'geheim' is odd"),
			wire.CloudInit{Status: "done", Warnings: []string{"Invalid cloud-config provided"}},
		},
		"of the boot before": {"{}", start + record("WARNING", brokenYAML) + start, wire.CloudInit{Status: "done"}},
		"bad YAML, 23.4": {
			`{"v1":{"stage":null,"init":{"errors":[],"recoverable_errors":{"WARNING":[` + quote(brokenYAML) + `]}},"modules-final":{"recoverable_errors":{}}}}`, "",
			wire.CloudInit{Status: "error", Errors: []string{brokenYAMLError}},
		},
		"old keys, 23.4": {
			`{"v1":{"datasource":"x","init":{"recoverable_errors":{"DEPRECATED":["old"]}}}}`, start + record("WARNING", brokenYAML),
			wire.CloudInit{Status: "done"},
		},
		"a warning, 23.4": {
			`{"v1":{"modules-config":{"recoverable_errors":{"WARNING":["odd"],"ERROR":["odder"]}}}}`, "",
			wire.CloudInit{Status: "done", Warnings: []string{"odder", "odd"}},
		},
	} {
		root := t.TempDir()
		for path, text := range map[string]string{"run/cloud-init/result.json": result, statusFile: c.status, cloudInitLog: c.log} {
			if text != "" {
				write(t, filepath.Join(root, path), text)
			}
		}
		if got := cloudInit(root); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v\nwant %+v", name, got, c.want)
		}
	}
}

func quote(text string) string {
	return `"` + strings.NewReplacer(`"`, `\"`, "\n", `\n`).Replace(text) + `"`
}

func FuzzComplaints(f *testing.F) {
	f.Add(record("WARNING", brokenYAML)+record("WARNING", unknownHeader), `{"v1":{"init":{}}}`)
	f.Add(strings.Repeat(record("ERROR", "ä"), 20), `{"v1":{"init":{"recoverable_errors":{"WARNING":["a\nb"]}}}}`)
	f.Fuzz(func(t *testing.T, log, status string) {
		root := t.TempDir()
		write(t, filepath.Join(root, statusFile), status)
		write(t, filepath.Join(root, cloudInitLog), log)
		c := withComplaints(wire.CloudInit{Status: wire.CloudInitDone}, root)
		if len(c.Errors) > maxErrors || len(c.Warnings) > maxErrors {
			t.Errorf("%d errors, %d warnings", len(c.Errors), len(c.Warnings))
		}
		for _, text := range append(c.Errors, c.Warnings...) {
			if len(text) > maxErrorText || strings.Contains(text, "\n") {
				t.Errorf("%q", text)
			}
		}
	})
}
