package local_test

import (
	"fmt"
	"testing"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
)

func BenchmarkStore(b *testing.B) {
	s, err := local.NewStore(b.TempDir(), discard())
	if err != nil {
		b.Fatal(err)
	}
	e, err := s.Create(b.Context(), clustertest.Endpoint("models", "fraud"))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Get", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Get(b.Context(), fraud); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Update", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			e.Spec.Repositories = []int64{int64(i)}
			if e, err = s.Update(b.Context(), e); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkJournalClaim(b *testing.B) {
	j, err := local.NewJournal(b.TempDir(), discard())
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, won, err := j.Claim(b.Context(), cluster.Entry{Name: fmt.Sprint("c-", i)}); err != nil || !won {
			b.Fatal(won, err)
		}
	}
}
