package doctor

import (
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

func TestEndsInDrop(t *testing.T) {
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	rule := func(exprs ...expr.Any) *nftables.Rule { return &nftables.Rule{Exprs: exprs} }
	for name, tc := range map[string]struct {
		rules []*nftables.Rule
		want  bool
	}{
		"no rules":           {nil, false},
		"reject":             {[]*nftables.Rule{rule(&expr.Reject{})}, true},
		"iptables' REJECT":   {[]*nftables.Rule{rule(&expr.Counter{}, &expr.Target{Name: "REJECT"})}, true},
		"count and drop":     {[]*nftables.Rule{rule(&expr.Counter{}, drop)}, true},
		"accept":             {[]*nftables.Rule{rule(&expr.Verdict{Kind: expr.VerdictAccept})}, false},
		"drop, for some":     {[]*nftables.Rule{rule(&expr.Meta{}, &expr.Cmp{}, drop)}, false},
		"drop, but not last": {[]*nftables.Rule{rule(drop), rule(&expr.Counter{})}, false},
	} {
		if got := endsInDrop(tc.rules); got != tc.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
