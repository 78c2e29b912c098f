package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	rows     = 1000
	listings = 500
	warmUp   = 20 // more, not counted
)

// measureLists times GET /vms with many rows, in one list and by pages.
func measureLists(out io.Writer, d *sandbox.Daemon) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := d.Client()
	if err != nil {
		return err
	}
	began := time.Now()
	creates, ctx := errgroup.WithContext(ctx)
	creates.SetLimit(8)
	for i := range rows {
		creates.Go(func() error {
			_, err := c.CreateVM(ctx, api.CreateVM{
				Name: fmt.Sprintf("row-%d", i), MachineSpec: api.MachineSpec{MemMiB: new(64), DiskMiB: new(64), Labels: map[string]string{"n": fmt.Sprint(i % 10)}},
			}, client.CreateOptions{})
			return err
		})
	}
	if err := creates.Wait(); err != nil {
		return fmt.Errorf("cannot make %d rows: %w", rows, err)
	}
	fmt.Fprintf(out, "\nGET /vms with %d rows (made in %.1f s)\n", rows, time.Since(began).Seconds())
	for _, query := range []string{"", "?limit=1000", "?limit=100", "?label=n=3&limit=1000"} {
		times, size, err := list(d, query)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  /vms%-22s p50 %s  p99 %s  max %s  %d bytes\n", query, ms(times.median()), ms(times.quantile(0.99)), ms(times.quantile(1)), size)
	}
	return nil
}

// list times many requests of the same list, until the last byte is read.
func list(d *sandbox.Daemon, query string) (times sample, size int64, err error) {
	key, err := os.ReadFile(filepath.Join(d.DataDir, "admin.key"))
	if err != nil {
		return nil, 0, err
	}
	for i := range warmUp + listings {
		req, err := http.NewRequest(http.MethodGet, d.URL()+"/vms"+query, nil)
		if err != nil {
			return nil, 0, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
		began := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, 0, err
		}
		size, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return nil, 0, fmt.Errorf("GET /vms%s: %s, %w", query, resp.Status, err)
		}
		if i >= warmUp {
			times = append(times, time.Since(began))
		}
	}
	return times, size, nil
}
