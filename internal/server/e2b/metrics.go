package e2b

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// metric is what a sandbox uses at one time.
type metric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUs          int       `json:"cpuCount"`
	CPUUsed       float64   `json:"cpuUsedPct"`
	MemUsed       int64     `json:"memUsed"` // bytes, here and below
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

func metricOf(m vm.Metrics) metric {
	out := metric{
		Timestamp: m.CollectedAt.UTC(), TimestampUnix: m.CollectedAt.Unix(), CPUs: m.VM.VCPUs, CPUUsed: m.CPUPercent / float64(max(1, m.VM.VCPUs)),
		MemUsed: m.Resident, MemTotal: int64(m.VM.MemMiB) << 20, DiskUsed: m.HostDisk, DiskTotal: int64(m.VM.DiskMiB) << 20,
	}
	if g := m.Guest; g != nil {
		out.MemUsed, out.MemTotal, out.DiskUsed, out.DiskTotal = g.MemUsed, g.MemTotal, g.DiskUsed, g.DiskTotal
	}
	return out
}

// metricSlack is how far the end of a range may be before now, for the clock of a client
// that asks until now.
const metricSlack = 10 * time.Second

// metrics returns what the sandbox uses now, if the range has that: hatchd keeps no past.
func (d *Door) metrics(c *call) error {
	start, err := unixTime(c.r.URL.Query(), "start")
	if err != nil {
		return err
	}
	end, err := unixTime(c.r.URL.Query(), "end")
	if err != nil {
		return err
	}
	v, s, err := d.sandbox(c, c.scope(), c.params["id"])
	if err != nil {
		return err
	}
	now := time.Now()
	if s == paused || start.After(now) || !end.IsZero() && end.Before(now.Add(-metricSlack)) {
		return c.answer(http.StatusOK, []metric{})
	}
	m, err := d.cfg.VMs.Metrics(c, c.scope(), v.ID)
	if err != nil {
		return gone(v.ID, err)
	}
	return c.answer(http.StatusOK, []metric{metricOf(m)})
}

// unixTime decodes a parameter in seconds, the zero time if it is absent.
func unixTime(query url.Values, name string) (time.Time, error) {
	text := query.Get(name)
	if text == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, errs.InvalidField(name, "%q is not a number of seconds", errs.Brief(text))
	}
	return time.Unix(n, 0), nil
}

// metricsOfMany returns what several sandboxes use. One that is paused or unknown has no
// entry.
func (d *Door) metricsOfMany(c *call) error {
	out := map[string]metric{}
	ids := strings.Split(c.r.URL.Query().Get("sandbox_ids"), ",")
	if len(ids) > maxPage {
		return errs.InvalidField("sandbox_ids", "has %d ids; the limit is %d", len(ids), maxPage)
	}
	for _, id := range ids {
		v, s, err := d.sandbox(c, c.scope(), id)
		if errs.Is(err, errs.NotFound) || s == paused {
			continue
		}
		if err != nil {
			return err
		}
		m, err := d.cfg.VMs.Metrics(c, c.scope(), v.ID)
		if errs.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		out[sandboxID(v.ID)] = metricOf(m)
	}
	return c.answer(http.StatusOK, map[string]any{"sandboxes": out})
}
