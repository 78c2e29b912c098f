package e2b

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// Bounds on the lines of one answer.
const (
	maxLines = 1000
	maxText  = 1 << 20 // bytes
)

// entry is a line of the console of a sandbox.
type entry struct {
	Timestamp time.Time         `json:"timestamp"`
	Level     string            `json:"level"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"fields"`
}

// line is an entry as old clients parse it: its text is JSON once more.
type line struct {
	Timestamp time.Time `json:"timestamp"`
	Line      string    `json:"line"`
}

// logs serves the first version of the route, in which start is in milliseconds.
func (d *Door) logs(c *call) error {
	entries, err := d.entries(c, "start")
	if err != nil {
		return err
	}
	lines := []line{}
	for _, e := range entries {
		text, err := json.Marshal(map[string]string{"level": e.Level, "logger": "console", "message": e.Message})
		if err != nil {
			return err
		}
		lines = append(lines, line{e.Timestamp, string(text)})
	}
	return c.answer(http.StatusOK, map[string]any{"logs": lines, "logEntries": entries})
}

// logsSecond serves the second, which reads on from a cursor in either direction.
func (d *Door) logsSecond(c *call) error {
	query := c.r.URL.Query()
	backward := query.Get("direction") == "backward"
	if direction := query.Get("direction"); direction != "" && direction != "forward" && !backward {
		return errs.InvalidField("direction", "%q is not a direction; want forward or backward", errs.Brief(direction))
	}
	entries, err := d.entries(c, "cursor")
	if err != nil {
		return err
	}
	if level := query.Get("level"); level != "" && level != "info" && level != "debug" {
		entries = []entry{} // the console has no higher level
	}
	if text := query.Get("search"); text != "" {
		entries = slices.DeleteFunc(entries, func(e entry) bool { return !strings.Contains(e.Message, text) })
	}
	if backward {
		slices.Reverse(entries)
	}
	return c.answer(http.StatusOK, map[string]any{"logs": entries})
}

// entries returns lines of the console that began at a time of a parameter or later.
func (d *Door) entries(c *call, from string) ([]entry, error) {
	query, limit := c.r.URL.Query(), maxLines
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxLines {
			return nil, errs.InvalidField("limit", "%q is out of range; 1 to %d can be given", errs.Brief(text), maxLines)
		}
		limit = n
	}
	q := vm.LogQuery{Tail: limit, Timestamps: true}
	if text := query.Get(from); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, errs.InvalidField(from, "%q is not a number of milliseconds", errs.Brief(text))
		}
		q.Since = time.UnixMilli(n)
	}
	v, _, err := d.sandbox(c, c.scope(), c.params["id"])
	if err != nil {
		return nil, err
	}
	text := &bounded{}
	if err := d.cfg.VMs.Log(c, c.scope(), v.ID, q, text); err != nil {
		return nil, gone(v.ID, err)
	}
	return parseLines(text.String(), v.CreatedAt), nil
}

// bounded keeps the first maxText bytes that are written to it.
type bounded struct{ strings.Builder }

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	_, err := b.Builder.Write(p[:min(len(p), maxText-b.Len())])
	return len(p), err
}

// parseLines decodes lines that begin with their time. One whose time is not known has that
// of the line before, at first that of the sandbox.
func parseLines(text string, at time.Time) []entry {
	entries := []entry{}
	for one := range strings.Lines(text) {
		stamp, message, _ := strings.Cut(strings.TrimRight(one, "\r\n"), " ")
		if t, err := time.Parse(time.RFC3339, stamp); err == nil {
			at = t
		}
		entries = append(entries, entry{at.UTC(), "info", strings.ToValidUTF8(message, "\uFFFD"), map[string]string{}})
	}
	return entries
}
