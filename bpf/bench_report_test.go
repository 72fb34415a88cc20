package bpf
import ("testing";"time")
type result struct { workload; rounds int }
func (r *result) merge(m *measurement) {}
type report struct { date time.Time; size programSize; results []result }
func (r report) isComplete() bool { return false }
func (r report) writeTo(path string) error {return nil}
var _ testing.TB
