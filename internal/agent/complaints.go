package agent

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// cloud-init counts as done what it only warns about, user data that it could not read
// included: up to version 23.3 its log alone says so, later ones count the warnings in
// their status, too.
const (
	statusFile   = "run/cloud-init/status.json"
	cloudInitLog = "var/log/cloud-init.log"
)

// Limits of what is read, in bytes. Of a longer log the end is read.
const (
	maxStatusFile = 1 << 20
	maxLogRead    = 4 << 20
	maxLogLine    = 64 << 10
)

// unreadForms begin the warnings about configuration that cloud-init ignores as a whole,
// with what they mean to the owner of the VM.
var unreadForms = []struct{ begin, meaning string }{
	{"Failed loading yaml blob", "user data was not applied: its YAML cannot be read"},
	{"Failed at merging in cloud config part", "a part of the user data was not applied"},
	{"Unhandled non-multipart", "user data was not applied: it does not begin with #cloud-config, #! or another known header; not even a byte order mark may be before that"},
	{"Unhandled unknown content-type", "a part of the user data was not applied: its type is not known"},
}

// withComplaints adds to the result of a cloud-init that has ended what it has warned
// about. Without the user data it has failed.
func withComplaints(c wire.CloudInit, root string) wire.CloudInit {
	complaints, known := statusComplaints(filepath.Join(root, statusFile))
	if !known {
		complaints = logComplaints(filepath.Join(root, cloudInitLog))
	}
	for _, complaint := range complaints {
		text := summary(complaint)
		i := slices.IndexFunc(unreadForms, func(f struct{ begin, meaning string }) bool { return strings.HasPrefix(text, f.begin) })
		if i < 0 {
			c.Warnings = addText(c.Warnings, text)
			continue
		}
		c.Status = wire.CloudInitError
		c.Errors = addText(c.Errors, unreadForms[i].meaning+" ("+text+")")
	}
	return c
}

// addText adds a text to a list, within the limits of both, unless it has it.
func addText(list []string, text string) []string {
	text = strings.ToValidUTF8(text[:min(maxErrorText, len(text))], "")
	if len(list) == maxErrors || slices.Contains(list, text) {
		return list
	}
	return append(list, text)
}

// statusComplaints returns the warnings in cloud-init's status; known is false if its
// version does not count them.
func statusComplaints(path string) (complaints []string, known bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer func() { _ = f.Close() }()
	var status struct {
		V1 map[string]json.RawMessage `json:"v1"`
	}
	if json.NewDecoder(io.LimitReader(f, maxStatusFile)).Decode(&status) != nil {
		return nil, false
	}
	for _, name := range []string{"init-local", "init", "modules-config", "modules-final"} {
		var stage struct {
			Complaints map[string][]string `json:"recoverable_errors"`
		}
		if json.Unmarshal(status.V1[name], &stage) != nil || stage.Complaints == nil {
			continue
		}
		known = true
		for _, level := range []string{"CRITICAL", "ERROR", "WARNING"} { // not DEPRECATED: that works
			complaints = append(complaints, stage.Complaints[level]...)
		}
	}
	return complaints, known
}

// logRecord matches the first line of a record in cloud-init's log: its level and text.
var logRecord = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - \S+\[([A-Z]+)\]: (.*)$`)

// firstStage begins the records of one boot, and of one run in a clone.
const firstStage = "running 'init-local'"

// logComplaints returns the warnings in cloud-init's log since its last start.
func logComplaints(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > maxLogRead {
		_, _ = f.Seek(-maxLogRead, io.SeekEnd)
	}
	var complaints []string
	complains := false // the current record does
	lines := bufio.NewScanner(io.LimitReader(f, maxLogRead))
	lines.Buffer(nil, maxLogLine)
	for lines.Scan() {
		record := logRecord.FindStringSubmatch(lines.Text())
		switch {
		case record == nil:
			if complains {
				last := &complaints[len(complaints)-1]
				*last += "\n" + lines.Text()
			}
		case strings.Contains(record[2], firstStage):
			complaints, complains = nil, false
		default:
			complains = record[1] == "WARNING" || record[1] == "ERROR" || record[1] == "CRITICAL"
			if complains {
				complaints = append(complaints, record[2])
			}
		}
	}
	return complaints
}

// place matches where a YAML parser points to.
var place = regexp.MustCompile(`^\s+in "<.*>", (line \d+, column \d+)`)

// summary returns a warning in one line. It drops what quotes the user data, which may
// be secret.
func summary(complaint string) string {
	first, rest, _ := strings.Cut(complaint, "\n")
	if about, quoted, ok := strings.Cut(first, " userdata: '"); ok && quoted != "" {
		first = about + " userdata"
	}
	if !strings.HasPrefix(first, unreadForms[0].begin) {
		return strings.TrimRight(first, ": ")
	}
	var text strings.Builder
	text.WriteString(strings.Replace(first, `: "`, ": ", 1))
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n")
		if at := place.FindStringSubmatch(line); at != nil {
			text.WriteString(" (" + at[1] + ")")
		} else if line != "" && line[0] != ' ' && line[0] != '"' {
			text.WriteString("; " + line)
		}
	}
	return text.String()
}
