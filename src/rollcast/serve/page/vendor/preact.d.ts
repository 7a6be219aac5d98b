export type VNode = { type: any; props: any; key: any };
export type Ref = ((element: Element | null) => void) | { current: any } | null;
export function h(type: any, props: Record<string, any> | null, ...children: any[]): VNode;
export function render(node: VNode, parent: Element): void;
export function createContext<T>(value: T): { Provider: any; Consumer: any; current?: T };
