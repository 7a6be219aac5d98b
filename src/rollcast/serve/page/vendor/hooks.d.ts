export function useState<T>(first: T | (() => T)): [T, (next: T | ((before: T) => T)) => void];
export function useReducer<S, A>(reduce: (state: S, action: A) => S, first: S): [S, (action: A) => void];
export function useEffect(act: () => void | (() => void) | undefined, inputs?: readonly unknown[]): void;
export function useLayoutEffect(act: () => void | (() => void) | undefined, inputs?: readonly unknown[]): void;
export function useMemo<T>(make: () => T, inputs?: readonly unknown[]): T;
export function useRef<T>(first: T): { current: T };
export function useContext<T>(context: { current?: T }): T;
