/* What torch links of the CUDA driver; none of it is called with an effect. */
int cuCtxGetCurrent(void){return 0;}
int cuCtxSetCurrent(void){return 0;}
int cuDeviceGet(void){return 0;}
int cuDeviceGetAttribute(void){return 0;}
int cuDevicePrimaryCtxRetain(void){return 0;}
int cuFuncGetAttribute(void){return 0;}
int cuFuncSetAttribute(void){return 0;}
int cuFuncSetCacheConfig(void){return 0;}
int cuGetErrorString(void){return 0;}
int cuLaunchCooperativeKernel(void){return 0;}
int cuLaunchKernel(void){return 0;}
int cuLinkAddData_v2(void){return 0;}
int cuLinkComplete(void){return 0;}
int cuLinkCreate_v2(void){return 0;}
int cuModuleGetFunction(void){return 0;}
int cuModuleLoad(void){return 0;}
int cuModuleLoadData(void){return 0;}
int cuModuleLoadDataEx(void){return 0;}
int cuModuleUnload(void){return 0;}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(void){return 0;}
int cuPointerGetAttribute(void){return 0;}
int cuTensorMapEncodeTiled(void){return 0;}
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a){*f=0;*a=0;return 0;}
