// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Metrics of this package share their labels. prometheus.NewConstMetric makes new ones for each
// series, which was half of what a scrape of many devices allocated. A registry checks both kinds
// of metrics: a label outside UTF-8 fails the scrape of its metrics.

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

// label returns a label. Metrics share it and do not change it.
func label(name, value string) *dto.LabelPair {
	return &dto.LabelPair{Name: &name, Value: &value}
}

// deviceLabel returns the label of a device.
func deviceLabel(name string) *dto.LabelPair { return label("device", name) }

// enumeration is the type of the values of a label that has few.
type enumeration interface {
	~int | ~uint8
	fmt.Stringer
}

// labelsOf returns the labels of the values below number.
func labelsOf[E enumeration](name string, number E) []*dto.LabelPair {
	labels := make([]*dto.LabelPair, number)
	for value := E(0); value < number; value++ {
		labels[value] = label(name, value.String())
	}
	return labels
}

// constMetric is what counters, gauges and histograms have in common.
type constMetric struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
}

// Desc implements prometheus.Metric.
func (m *constMetric) Desc() *prometheus.Desc { return m.desc }

// oneIf returns the value of a gauge that is 0 or 1.
func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

type constCounter struct {
	constMetric
	value   float64
	counter dto.Counter
}

// counter returns a counter. The labels are those of the description, in the order of their names.
func counter(desc *prometheus.Desc, value float64, labels ...*dto.LabelPair) prometheus.Metric {
	m := &constCounter{constMetric: constMetric{desc, labels}, value: value}
	m.counter.Value = &m.value
	return m
}

// Write implements prometheus.Metric.
func (m *constCounter) Write(out *dto.Metric) error {
	out.Label, out.Counter = m.labels, &m.counter
	return nil
}

type constGauge struct {
	constMetric
	value float64
	gauge dto.Gauge
}

// gauge is like counter.
func gauge(desc *prometheus.Desc, value float64, labels ...*dto.LabelPair) prometheus.Metric {
	m := &constGauge{constMetric: constMetric{desc, labels}, value: value}
	m.gauge.Value = &m.value
	return m
}

// Write implements prometheus.Metric.
func (m *constGauge) Write(out *dto.Metric) error {
	out.Label, out.Gauge = m.labels, &m.gauge
	return nil
}

// constHistogram has classic and native buckets. Both count the same observations exactly, because
// every classic bound is also a native one.
type constHistogram struct {
	constMetric
	count      uint64
	sum        float64
	bounds     []float64 // of the classic buckets; shared
	cumulative []uint64  // like bounds
	native     []timing.NativeBucket
	zeros      uint64 // in the zero bucket of the native buckets
}

// newHistogram returns a histogram with the cumulative count at each classic bound, and with native
// buckets. The metric keeps the slices.
func newHistogram(desc *prometheus.Desc, count uint64, sum float64, bounds []float64, cumulative []uint64,
	native []timing.NativeBucket, zeros uint64, labels ...*dto.LabelPair,
) prometheus.Metric {
	return &constHistogram{constMetric{desc, labels}, count, sum, bounds, cumulative, native, zeros}
}

// Write implements prometheus.Metric.
func (m *constHistogram) Write(out *dto.Metric) error {
	classic := make([]dto.Bucket, len(m.bounds))
	buckets := make([]*dto.Bucket, len(m.bounds))
	for i := range classic {
		classic[i].UpperBound, classic[i].CumulativeCount = &m.bounds[i], &m.cumulative[i]
		buckets[i] = &classic[i]
	}
	spans, differences := encodeBuckets(m.native)
	out.Label = m.labels
	out.Histogram = &dto.Histogram{
		SampleCount: &m.count, SampleSum: &m.sum, Bucket: buckets,
		Schema:        new(int32(timing.NativeSchema)),
		ZeroThreshold: new(float64(prometheus.DefNativeHistogramZeroThreshold)), ZeroCount: &m.zeros,
		PositiveSpan: spans, PositiveDelta: differences,
	}
	return nil
}

// encodeBuckets encodes native buckets as Prometheus does: spans of adjacent buckets with the
// distance to the previous span, and for each bucket the difference to the count of the
// previous one.
func encodeBuckets(buckets []timing.NativeBucket) (spans []*dto.BucketSpan, differences []int64) {
	var next int      // index after the previous bucket
	var before uint64 // count of the previous bucket
	for _, bucket := range buckets {
		if len(spans) == 0 || bucket.Index != next {
			spans = append(spans, &dto.BucketSpan{Offset: new(int32(bucket.Index - next)), Length: new(uint32(0))})
		}
		*spans[len(spans)-1].Length++
		differences = append(differences, int64(bucket.Count-before))
		next, before = bucket.Index+1, bucket.Count
	}
	return spans, differences
}
