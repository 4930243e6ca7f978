"""Texts of programs compiled for TPUs, as XLA writes them, without what costs don't depend on."""

# `psum` and `psum_scatter`, `all_gather`, `all_to_all` and `ppermute` of f32[64, 128] a chip on
# v5e:2x4; the arrays of S(1) lie in vector memory.
COLLECTIVES = """\
HloModule jit_body, is_scheduled=true, num_partitions=8

%region_0.0 (psum.0: f32[], psum.1: f32[]) -> f32[] {
  %psum.0 = f32[]{:T(128)} parameter(0)
  %psum.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.0 = f32[]{:T(128)} add(%psum.0, %psum.1)
}

ENTRY %main.0_spmd (param.1: f32[64,128]) -> (f32[64,128], f32[512,128], f32[8,128], f32[64,128], f32[64,128]) {
  %param.1 = f32[64,128]{1,0:T(8,128)} parameter(0), sharding={devices=[8,1]<=[8]}
  %collective-permute-start = (f32[64,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%param.1), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}
  %copy-start = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%param.1)
  %copy-done = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %all_to_all.9 = f32[8,1,1024]{2,1,0:T(1,128)S(1)} all-to-all(%copy-done), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-reduce.1 = (f32[64,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)S(1)}) all-reduce(%copy-done, %copy-done), \
channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true, to_apply=%region_0.0
  %reduce_scatter.7 = f32[8,128]{1,0:T(8,128)} reduce-scatter(%copy-done), channel_id=1, replica_groups=[1,8]<=[8], \
dimensions={0}, to_apply=%region_0.0
  %collective-permute-done = f32[64,128]{1,0:T(8,128)S(1)} collective-permute-done(%collective-permute-start)
  %all-gather.4 = f32[128,128]{1,0:T(8,128)S(1)} all-gather(%copy-done), channel_id=1, \
replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'tensor'}, dimensions={0}, use_global_device_ids=true
  %get-tuple-element.17 = f32[64,128]{1,0:T(8,128)} get-tuple-element(%all-reduce.1), index=0
  ROOT %tuple.10 = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) \
tuple(%get-tuple-element.17, %reduce_scatter.7)
}
"""

# Six steps of a loop, in each of which a product runs beside the gathering of the next weights, and
# its sum is kept in parts: what a TPU makes of FSDP.
BESIDE_PRODUCTS = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%add.3 (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %add.31 = bf16[]{:T(256)} add(%x, %y)
}

%bitcast_fusion.3 (bitcast_input.13: bf16[128,256]) -> bf16[128,256] {
  %bitcast_input.13 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %bitcast.100 = bf16[128,256]{1,0:T(8,128)(2,1)} bitcast(%bitcast_input.13)
}

%fused_computation.46 (param_0.141: bf16[256,64]) -> (bf16[256,64], bf16[256,256], s32[2]) {
  %param_0.141 = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.49 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%param_0.141), channel_id=16, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %custom-call.13 = (bf16[256,64]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}, s32[2]{0:S(4)}) \
custom-call(%all-gather.49), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.88 (param_0.1: bf16[256,64], param_1.1: bf16[256,256], param_2.1: s32[2], \
param_3.1: bf16[128,256]) -> (bf16[256,256], bf16[256,64], bf16[256,256], s32[2]) {
  %param_3.1 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(3)
  %fusion.91 = bf16[128,256]{1,0:T(8,128)(2,1)} fusion(%param_3.1), kind=kLoop, calls=%bitcast_fusion.3
  %convolution.33 = bf16[256,256]{1,0:T(8,128)(2,1)} convolution(%fusion.91, %fusion.91), dim_labels=fb_io->bf
  %param_0.1 = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.37 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=16, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  %param_2.1 = s32[2]{0:S(4)} parameter(2)
  ROOT %tuple.72 = (bf16[256,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[256,256]{1,0:T(8,128)(2,1)}, s32[2]{0:S(4)}) tuple(%convolution.33, %param_0.1, %all-gather.37, %param_2.1)
}

%fused_computation.48 (param_0.149: bf16[256,64], param_1.118: bf16[256,256], param_2.79: s32[2]) -> bf16[256,256] {
  %param_0.149 = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.118 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.53 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%param_0.149), channel_id=16, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}
  %param_2.79 = s32[2]{0:S(4)} parameter(2)
  ROOT %custom-call.15 = bf16[256,256]{1,0:T(8,128)(2,1)} \
custom-call(%param_0.149, %param_1.118, %all-gather.53, %param_2.79), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (input.4: bf16[256,256]) -> bf16[64,256] {
  %input.4 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.15 = bf16[256,256]{1,0:T(8,128)(2,1)} all-reduce(%input.4), channel_id=13, \
replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, to_apply=%add.3
  %constant.228 = u32[] constant(0)
  %partition-id.13 = u32[] partition-id()
  ROOT %dynamic-slice.68 = bf16[64,256]{1,0:T(8,128)(2,1)} \
dynamic-slice(%all-reduce.15, %partition-id.13, %constant.228), dynamic_slice_sizes={64,256}
}

%region_0.2 (wide.param.4: (s32[], bf16[128,256], bf16[256,64], bf16[64,256], bf16[256,256])) -> \
(s32[], bf16[128,256], bf16[256,64], bf16[64,256], bf16[256,256]) {
  %wide.param.4 = (s32[]{:T(128)S(6)}, bf16[128,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)S(6)} get-tuple-element(%wide.param.4), index=0
  %get-tuple-element.2 = bf16[128,256]{1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.4), index=1
  %get-tuple-element.3 = bf16[256,64]{1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.4), index=2
  %async-collective-start = (bf16[256,64]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}, s32[2]{0:S(4)}) \
fusion(%get-tuple-element.3), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.46
  %get-tuple-element.4 = bf16[256,64]{1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start), index=0
  %get-tuple-element.5 = bf16[256,256]{1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start), index=1
  %get-tuple-element.6 = s32[2]{0:S(4)} get-tuple-element(%async-collective-start), index=2
  %fusion.76 = (bf16[256,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}, \
s32[2]{0:S(4)}) fusion(%get-tuple-element.4, %get-tuple-element.5, %get-tuple-element.6, \
/*index=3*/%get-tuple-element.2), kind=kOutput, calls=%async_collective_fusion.88
  %get-tuple-element.7 = bf16[256,256]{1,0:T(8,128)(2,1)} get-tuple-element(%fusion.76), index=0
  %get-tuple-element.8 = bf16[256,256]{1,0:T(8,128)(2,1)} get-tuple-element(%fusion.76), index=2
  %async-collective-done = bf16[256,256]{1,0:T(8,128)(2,1)} \
fusion(%get-tuple-element.4, %get-tuple-element.8, %get-tuple-element.6), kind=kCustom, calls=%fused_computation.48
  %fusion.70 = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%get-tuple-element.7), kind=kCustom, calls=%all-reduce-scatter.1
  %constant.89 = s32[]{:T(128)S(6)} constant(1)
  %add.40 = s32[]{:T(128)S(6)} add(%get-tuple-element.1, %constant.89)
  ROOT %tuple.66 = (s32[]{:T(128)S(6)}, bf16[128,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}) \
tuple(%add.40, %get-tuple-element.2, %get-tuple-element.3, %fusion.70, %async-collective-done)
}

%region_2.3 (wide.param.1: (s32[], bf16[128,256], bf16[256,64], bf16[64,256], bf16[256,256])) -> pred[] {
  %constant.91 = s32[]{:T(128)} constant(6)
  %wide.param.1 = (s32[]{:T(128)S(6)}, bf16[128,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.347 = s32[]{:T(128)S(6)} get-tuple-element(%wide.param.1), index=0
  ROOT %lt.12 = pred[]{:T(512)} compare(%get-tuple-element.347, %constant.91), direction=LT
}

ENTRY %main.8_spmd (param.0: bf16[128,256], param.1: bf16[256,64], param.2: bf16[64,256], param.3: bf16[256,256]) -> \
bf16[64,256] {
  %param.0 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(0)
  %param.1 = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(1)
  %param.2 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(2)
  %param.3 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(3)
  %constant.92 = s32[]{:T(128)} constant(0)
  %tuple.78 = (s32[]{:T(128)S(6)}, bf16[128,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}) \
tuple(%constant.92, %param.0, %param.1, %param.2, %param.3)
  %while.39 = (s32[]{:T(128)S(6)}, bf16[128,256]{1,0:T(8,128)(2,1)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)}) while(%tuple.78), condition=%region_2.3, \
body=%region_0.2
  ROOT %get-tuple-element.9 = bf16[64,256]{1,0:T(8,128)(2,1)} get-tuple-element(%while.39), index=3
}
"""
